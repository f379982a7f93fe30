"""Fixtures of the converter's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from miniature import Miniature

from nnssl.datasets.spec import DatasetSpec, find_specs, read_spec


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    """Six training and two test patients, 2017 layout; patient 4 has its ED in frame 4."""
    source = Miniature(tmp_path / "ACDC")
    for number in range(1, 7):
        source.patient("training", number, ed=4 if number == 4 else 1)
    for number in (101, 102):
        source.patient("testing", number)
    return source


@pytest.fixture
def spec() -> DatasetSpec:
    """The installed ACDC spec."""
    return read_spec(find_specs()["ACDC"])
