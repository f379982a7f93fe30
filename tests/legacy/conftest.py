"""The tiny dataset of the training tests; nothing here is ever recorded anew by accident."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_dataset, tiny_files
from tests.training.recorded_losses import RECORD, draw_nothing

__all__ = ["tiny_dataset", "tiny_files"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares only, and draws no pictures."""
    monkeypatch.delenv(RECORD, raising=False)
    draw_nothing(monkeypatch)
