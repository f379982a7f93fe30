"""A place with one good checkpoint of each kind, and the harness that tries others there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class
from tests.hostile.doors import FINETUNER, FINETUNING, PRETRAINER, PRETRAINING, Harness, train


@pytest.fixture
def harness(
    tiny_dataset: Any, trainer_yaml: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> Harness:
    trainer_class.cache_clear()
    trainer_yaml(PRETRAINER, PRETRAINING)
    trainer_yaml(FINETUNER, FINETUNING)
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)
    return Harness(tiny_dataset, monkeypatch, capfd)


@pytest.fixture
def pretrained(harness: Harness, tmp_path: Path) -> Path:
    """A finished pre-training, moved away so that no run finds it by itself."""
    return Path(shutil.move(train(harness.dataset, PRETRAINER), tmp_path / "pretrained.pth"))


@pytest.fixture
def finetuned(harness: Harness, pretrained: Path, tmp_path: Path) -> Path:
    harness.patch.setenv("nnssl_pretrained_weights", str(pretrained))
    final = train(harness.dataset, FINETUNER)
    harness.patch.delenv("nnssl_pretrained_weights")
    return Path(shutil.move(final, tmp_path / "finetuned.pth"))


@pytest.fixture
def guarded(harness: Harness, tmp_path: Path) -> Iterator[Path]:
    """The mark that a payload would leave; nothing may be written beside the datasets, or lost."""
    mark = tmp_path / "executed"
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    yield mark
    after = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert not mark.exists()
    lost = before - after  # the harness empties the results itself
    assert [file for file in lost if not file.is_relative_to(harness.dataset.results)] == []
    allowed = (harness.dataset.results, harness.dataset.preprocessed, tmp_path / "try")
    assert [file for file in after - before if not any(map(file.is_relative_to, allowed))] == []
