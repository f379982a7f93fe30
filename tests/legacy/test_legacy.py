"""What the code wrote before today's: runs, cluster maps, studies, pools and settings still serve.

`data/` was written by that code (see `make.py`), and so were the losses and answers that today's
code must give again: to the last bit where processor and libraries are those of the record, else as
`recorded_losses` says. The data set itself is drawn and preprocessed here. These records are not
made anew; where a test fails, today's code has forgotten how to read something. Two exceptions are
losses whose meaning was changed on purpose: of Models Genesis (the number of windows of local
shuffling), and of the fine-tuning after its frozen encoder is released (momentum and warm-up).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import yaml

from tests.legacy import scenes
from tests.legacy.scenes import FINETUNER, LOSSES, POOL, PRETRAINER, WEIGHTS, Stage, place
from tests.training.recorded_losses import Records

EXPECTED = scenes.read(scenes.EXPECTED)
SPECIAL = ("nnSSLOldFinetuneTrainer", "nnSSLOldPixelClusteringTrainer")
OLD = sorted(file.stem for file in scenes.CONFIGS.glob("*.yaml") if file.stem not in SPECIAL)
ABSOLUTE = re.compile(r"(?<![\w.:/])/[\w.-]+(?:/[\w.-]+)+")
OLD_RUN = "study/cells/pretrain-nnSSLContrastiveTrainer-s3-f0"


@pytest.fixture
def stage(tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tiny_dataset, monkeypatch)


@pytest.fixture
def old_weights(stage: Stage) -> Path:
    """A finished pre-training in the results of the dataset, where fine-tuning finds it."""
    (run,) = (scenes.DATA / OLD_RUN).glob("Dataset999_Tiny/*")
    shutil.copytree(run, stage.dataset.results / run.name)
    return stage.folder(PRETRAINER) / "checkpoint_final.pth"


@pytest.fixture
def old_study(stage: Stage, tmp_path: Path) -> Path:
    stage.patch.setenv(scenes.FOLDERS, "")
    return place("study", tmp_path / "study")


@pytest.fixture
def old_maps(stage: Stage) -> Path:
    """The maps beside images that are stored in as many bytes as the old ones."""
    if scenes.image_bytes(stage.dataset) != EXPECTED["image bytes"]:
        pytest.skip("the images are compressed otherwise here, so maps do not know them")
    folder = stage.dataset.preprocessed / "nnssl" / "nnUNetPlans_2d" / "old_clusters"
    return place("clusters", folder) / "fold_0"


@pytest.fixture
def old_pool(stage: Stage, tmp_path: Path) -> Path:
    """The small files of a pool beside its two members; returns its weights."""
    scenes.draw_other(tmp_path)
    for part in ("raw", "preprocessed"):
        place(f"pool/{part}/{POOL}", tmp_path / part / POOL)
    (weights,) = (scenes.DATA / "pool" / "results").rglob("checkpoint_final.pth")
    return weights


def voxels(file: Path) -> np.ndarray:
    return np.asarray(blosc2.open(str(file), mode="r")[:])


@pytest.mark.parametrize("name", [PRETRAINER, FINETUNER])
def test_an_unfinished_run_goes_on_as_it_would_have(stage: Stage, name: str) -> None:
    place("unfinished", stage.dataset.results)
    losses = stage.resume(name)
    assert len(losses.train) == 20 - scenes.STOPPED_AFTER
    Records(LOSSES).check(f"{name} resumed", losses)


def test_a_resolved_configuration_is_a_trainer(stage: Stage) -> None:
    """Every knob of the unfinished run stands in it; without a stop the run ends as it would."""
    (file,) = (scenes.DATA / "unfinished").glob(f"{PRETRAINER}__*/fold_0/resolved_config.yaml")
    resolved = yaml.safe_load(file.read_text())
    trainer = {"kind": resolved["kind"], **resolved["sections"]}
    (stage.dataset.configs / "nnSSLResolvedTrainer.yaml").write_text(yaml.safe_dump(trainer))
    losses = stage.train("nnSSLResolvedTrainer")
    del losses.train[: scenes.STOPPED_AFTER], losses.validation[:1]
    if Records(LOSSES).is_of_here(f"{PRETRAINER} resumed"):  # a later step agrees in its bits only
        Records(LOSSES).check(f"{PRETRAINER} resumed", losses)


@pytest.mark.parametrize(
    "changed", ["temperature=0.3", "spread=0.4", "hidden_features=32", "training.seed=0"]
)
def test_a_resumed_run_notices_a_setting_that_changed(stage: Stage, changed: str) -> None:
    """Only what is read under its old name can be compared."""
    place("unfinished", stage.dataset.results)
    knob = changed.partition("=")[0]
    kept = [word for word in scenes.UNFINISHED[PRETRAINER].split() if not word.startswith(knob)]
    trainer = stage.trainer(PRETRAINER, " ".join([*kept, changed]))
    trainer.load_checkpoint(str(stage.folder(PRETRAINER) / "checkpoint_latest.pth"))
    with pytest.raises(ValueError, match=rf"{knob}: stored .*, today "):
        trainer.on_train_start()


@pytest.mark.parametrize("name", OLD)
def test_settings_in_the_old_spelling_do_what_they_did(stage: Stage, name: str) -> None:
    Records(LOSSES).check(name, stage.train(name))
    if name == "nnSSLOldContrastiveTrainer":
        assert scenes.probed(stage) == pytest.approx(EXPECTED["probe"], abs=0.02)


@pytest.mark.parametrize("unit", scenes.LABELS)
def test_label_budgets_choose_the_same_cases(stage: Stage, unit: str) -> None:
    assert scenes.labelled(stage, unit) == EXPECTED["labels"][unit]


def test_finetuning_finds_old_weights(stage: Stage, old_weights: Path) -> None:
    Records(LOSSES).check(SPECIAL[0], stage.train(SPECIAL[0]))
    final = stage.folder(SPECIAL[0]) / "checkpoint_final.pth"
    assert scenes.content(final)["nnssl"]["weights"]["source"] == str(old_weights)


def test_pretraining_starts_from_old_weights(stage: Stage, old_weights: Path) -> None:
    overrides = f"{scenes.SHORT} {scenes.SMALL} initial_weights={old_weights}"
    losses = stage.train("nnSSLContrastiveGRTrainer", overrides)
    Records(LOSSES).check("nnSSLContrastiveGRTrainer from old weights", losses)


def test_old_runs_are_listed(
    stage: Stage, old_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    scenes.command("nnssl_runs")([])
    told = capsys.readouterr().out
    assert "nnUNetv2_train Dataset999_Tiny 2d 0 -p nnUNetPlans -tr nnSSLFinetuneTrainer" in told


def test_old_cluster_maps_are_used(stage: Stage, old_maps: Path) -> None:
    lost = old_maps / "p2_f0.b2nd"
    before = voxels(lost)
    lost.unlink()  # is made again by the recipe that the manifest tells
    times = {file: file.stat().st_mtime_ns for file in old_maps.glob("*.b2nd")}
    Records(LOSSES).check(SPECIAL[1], stage.train(SPECIAL[1]))
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert (
        voxels(lost) == before
    ).mean() > 0.999  # a voxel between two clusters may fall to either


def test_old_cluster_maps_of_another_number_are_refused(stage: Stage, old_maps: Path) -> None:
    trainer = stage.trainer(SPECIAL[1], "objective.clusters=21")
    with pytest.raises(ValueError, match="nnssl_cluster"):
        trainer.run_training()


def test_an_old_study_tells_the_same(old_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scenes.study_tells(old_study, capsys)
    assert scenes.differences(EXPECTED["study"], found) == []


def test_an_old_pool_allows_and_refuses_the_same(
    stage: Stage, old_pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = dict(scenes.pool_verdicts(stage, old_pool))
    expected = deepcopy(EXPECTED["pool verdicts"])
    # the other member's images, noisy balls too, look alike, or are not at hand to compare with
    for name in ("fold 0", "fold 0 without the pool's records"):
        expected[name]["contaminated"] = None
    assert verdicts == expected
    told = [line.replace("cannot be told", "honest") for line in scenes.runs_from_the_pool(capsys)]
    assert told == EXPECTED["runs from the pool"]


def test_an_old_pool_is_completed_as_it_was_begun(
    stage: Stage, old_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are not stored: the same command makes them, other settings are refused."""
    monkeypatch.delenv(WEIGHTS, raising=False)
    main = scenes.command("nnssl_pool")
    with pytest.raises(SystemExit, match="made with other settings"):
        main([*scenes.MAKE_POOL.split(), "--spacing", "own"])
    main(scenes.MAKE_POOL.split())
    for name in ("nnUNetPlans.json", "splits_final.json", "dataset.json", "nnssl/cases.json"):
        new = scenes.read(stage.dataset.preprocessed.parent / POOL / name)
        old = scenes.read(scenes.DATA / "pool" / "preprocessed" / POOL / name)
        assert scenes.differences(old, new, name) == []
    losses = scenes.pool_stage(stage).train(PRETRAINER, f"{scenes.SHORT} {scenes.SMALL}")
    Records(LOSSES).check(f"{PRETRAINER} on the pool", losses)


def test_nothing_stored_names_a_folder_of_a_machine() -> None:
    kept = ("/data", "/opt/nnssl", "/opt/env")
    for file in (path for path in scenes.DATA.rglob("*") if path.is_file()):
        texts = []
        if file.suffix == ".pth":
            texts = list(_texts(scenes.content(file)))
        elif file.suffix in (".json", ".yaml", ".txt"):
            texts = [file.read_text()]
        paths = [path for text in texts for path in ABSOLUTE.findall(text)]
        assert [path for path in paths if not path.startswith(kept)] == [], file


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)
    elif isinstance(value, str):
        yield value
