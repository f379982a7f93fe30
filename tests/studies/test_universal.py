"""Regimes and variants of the universal encoder: a study that needs nothing but dataset ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.spec import find_studies, find_waiting, read_study

REGIMES = {
    "target only": 27,
    "same anatomy with target": 901,
    "universal with target": 902,
    "universal without target": 903,
    "universal with target, demeaned": 902,
    "universal with target, two steps": 902,
    "universal with target, representation": 902,
    "universal with target, demeaned representation": 902,
}


@pytest.fixture
def filled(tmp_path: Path) -> StudyFolder:
    """The shipped file with three ids given, and nothing else changed."""
    text = find_studies()["universal"].read_text(encoding="utf-8")
    for number in list(REGIMES.values())[1:]:
        text = text.replace("dataset: null", f"dataset: {number}", 1)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    return StudyFolder(read_study(tmp_path / "mine.yaml"), tmp_path / "study")


def test_without_ids_the_target_alone_is_left():
    study = read_study("universal")
    cells = StudyFolder(study, Path("/s")).cells
    assert list(study.pretraining) == list(REGIMES)
    assert set(find_waiting(study)) == set(REGIMES) - {"target only"}
    assert {cell.dataset for cell in cells} == {27}


def test_every_regime_pretrains_on_its_dataset_and_tunes_on_the_target(filled: StudyFolder):
    assert find_waiting(filled.study) == {}
    grid = filled.cells
    sources = {cell.id: cell for cell in grid if cell.kind == "pretrain"}
    assert len(sources) == 8 * 2  # two seeds
    assert {cell.plans for cell in grid} == {"nnUNetPlans"}
    tuned = [cell for cell in grid if cell.needs is not None]
    assert len(tuned) == 8 * 3 * 6  # regimes, budgets, repetitions
    for cell in tuned:
        assert cell.dataset == 27
        assert sources[cell.needs].dataset == REGIMES[cell.method]
        assert sources[cell.needs].fold == cell.fold
    steps = {cell.steps for cell in sources.values()}
    assert len(steps) == 1
    first = next(cell for cell in sources.values() if cell.dataset == 903)
    assert filled.command(first)[:4] == ["nnUNetv2_train", "903", "2d", "0"]
    assert first.overrides["sampling.mode"] == "balanced"


def test_weights_are_looked_for_where_the_pool_wrote_them(
    filled: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for name in ("Dataset027_ACDC", "Dataset902_Universal"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(json.dumps({}))
    cell = next(each for each in filled.cells if each.method == "universal with target")
    tuned = next(each for each in filled.cells if each.needs == cell.id)
    file = Path(filled.environment(tuned)["nnssl_pretrained_weights"])
    assert file.parent.parent.parent.name == "Dataset902_Universal"
    assert file.parent.parent.name == "nnSSLContrastiveTrainer__nnUNetPlans__2d"
    assert file.parent.name == "fold_0"
