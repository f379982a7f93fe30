"""Writes `data/`: runs, maps, a study and a pool of the code that this repository had before.

They were made by the commit that added this file, whose package is that of the commit before it,
with nnU-Net 2.8.1. To make them again, in a checkout of that commit, and never with newer code:

    OMP_NUM_THREADS=1 python -m pytest tests/legacy/make.py

Paths of the machine are replaced by `/data` (the data), `/opt/nnssl` (the repository) and
`/opt/env` (the environment); nothing else of what the code wrote is changed, but that final
checkpoints of fine-tuned cells of the study hold the part `nnssl` only (its report reads no more).
`data/configs` is written by hand: all knobs in the spelling of that code.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.legacy import scenes
from tests.legacy.scenes import DATA, EXPECTED, FINETUNER, LOSSES, POOL, PRETRAINER, Stage
from tests.training.recorded_losses import RECORD, Records

OLD = sorted(file.stem for file in scenes.CONFIGS.glob("*.yaml"))
NEED_WEIGHTS = ("nnSSLOldFinetuneTrainer",)
NEED_CLUSTERS = ("nnSSLOldPixelClusteringTrainer",)
TEXT = (".json", ".yaml", ".txt")


@pytest.fixture
def stage(tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv(RECORD, "1")
    return Stage(tiny_dataset, monkeypatch)


@pytest.fixture
def keep(tmp_path: Path) -> Any:
    """`keep(source, target)`: stores a file under `data/`, without paths of this machine."""
    paths = {str(tmp_path): "/data", str(scenes.REPOSITORY): "/opt/nnssl", sys.prefix: "/opt/env"}

    def neutral(text: str) -> str:
        for path, other in paths.items():
            text = text.replace(path, other)
        return text

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [walk(entry) for entry in value]
        return neutral(value) if isinstance(value, str) else value

    def store(source: Path, target: str, own_part_only: bool = False) -> None:
        file = DATA / target
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix in TEXT:
            file.write_text(neutral(source.read_text()))
        elif file.suffix == ".pth":
            kept = walk(scenes.content(source))
            own = {"network_weights": {}, "nnssl": kept["nnssl"]}
            torch.save(own if own_part_only else kept, file)
        else:
            shutil.copy(source, file)

    return store


def expect(name: str, value: Any) -> None:
    found = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
    EXPECTED.write_text(json.dumps({**found, name: value}, indent=1) + "\n")


def stop(trainer: Any) -> None:
    """Trains until a stop signal in the middle of an epoch."""
    step = trainer.train_step

    def stopping(batch: Any) -> Any:
        if trainer.step == scenes.STOPPED_AFTER - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(batch)

    trainer.train_step = stopping
    with pytest.raises(SystemExit):
        trainer.run_training()


def test_begin() -> None:
    """Nothing of an earlier making stays."""
    for path in DATA.iterdir():
        if path == scenes.CONFIGS:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_unfinished_runs(stage: Stage, keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (PRETRAINER, FINETUNER):
        stop(stage.trainer(name, scenes.UNFINISHED[name]))
        run = stage.folder(name)
        for file in (*run.parent.glob("*.json"), run / "checkpoint_latest.pth"):
            keep(file, f"unfinished/{file.relative_to(stage.dataset.results)}")
        keep(
            run / "resolved_config.yaml",
            f"unfinished/{run.parent.name}/fold_0/resolved_config.yaml",
        )
        Records(LOSSES).check(f"{name} resumed", stage.resume(name))


def test_clusters(stage: Stage, keep: Any) -> None:
    scenes.command("nnssl_cluster")(scenes.CLUSTERS.split())
    (folder,) = stage.dataset.preprocessed.glob("nnssl/*/old_clusters/fold_0")
    for file in sorted(folder.iterdir()):
        keep(file, f"clusters/fold_0/{file.name}")
    expect("image bytes", scenes.image_bytes(stage.dataset))
    for name in NEED_CLUSTERS:
        Records(LOSSES).check(name, stage.train(name))


@pytest.mark.parametrize("name", [n for n in OLD if n not in NEED_CLUSTERS + NEED_WEIGHTS])
def test_configs(stage: Stage, name: str) -> None:
    Records(LOSSES).check(name, stage.train(name))
    if name == "nnSSLOldContrastiveTrainer":
        expect("probe", scenes.probed(stage))


def test_labels(stage: Stage) -> None:
    expect("labels", {unit: scenes.labelled(stage, unit) for unit in scenes.LABELS})


def test_study(stage: Stage, keep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "old.yaml", tmp_path / "study"
    file.write_text(scenes.STUDY)
    stage.patch.setenv(scenes.FOLDERS, "")
    stage.patch.setenv("PYTHONPATH", str(scenes.REPOSITORY))
    stage.patch.setenv("nnUNet_extTrainer", str(scenes.REPOSITORY / "nnssl" / "external_trainers"))
    command = [sys.executable, "-m", "nnssl.cli.study", "run", str(file), "-o", str(folder)]
    subprocess.run([*command, "--devices", "cpu"], check=True)
    expect("study", scenes.study_tells(folder, capsys))
    keep(folder / "study.yaml", "study/study.yaml")
    for source in sorted(filter(_needed, folder.glob("cells/**/*"))):
        place = source.relative_to(folder)
        keep(source, f"study/{place}", own_part_only=not place.parts[1].startswith("pretrain-"))
    for record in (DATA / "study").glob("cells/*/cell.json"):
        content = scenes.read(record)
        content["machine"] |= {"host": "host", "system": platform.system()}
        record.write_text(json.dumps(content, indent=1) + "\n")
    (weights,) = folder.glob("cells/pretrain-*/*/*/fold_0/checkpoint_final.pth")
    from_old_weights(stage, weights)


def _needed(file: Path) -> bool:
    """Whether status and report read it."""
    names = {"cell.json", "dataset.json", "plans.json", "summary.json", "labelled_cases.json"}
    names |= {"probe.json", "resolved_config.yaml", "checkpoint_final.pth"}
    return file.name in names or file.name.startswith("training_log_") or ".nii" in file.name


def from_old_weights(stage: Stage, weights: Path) -> None:
    """Fine-tuning and pre-training that start from the finished pre-training of the study."""
    home = stage.folder(PRETRAINER)
    home.mkdir(parents=True)
    shutil.copy(weights, home)
    Records(LOSSES).check("nnSSLOldFinetuneTrainer", stage.train("nnSSLOldFinetuneTrainer"))
    overrides = f"{scenes.SHORT} {scenes.SMALL} initial_weights={weights}"
    found = stage.train("nnSSLContrastiveGRTrainer", overrides)
    Records(LOSSES).check("nnSSLContrastiveGRTrainer from old weights", found)


def test_pool(stage: Stage, keep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes.draw_other(tmp_path)
    scenes.command("nnssl_pool")(scenes.MAKE_POOL.split())
    pool = scenes.pool_stage(stage)
    found = pool.train(PRETRAINER, f"{scenes.SHORT} {scenes.SMALL}")
    Records(LOSSES).check(f"{PRETRAINER} on the pool", found)
    weights = pool.folder(PRETRAINER) / "checkpoint_final.pth"
    expect("pool verdicts", dict(scenes.pool_verdicts(stage, weights)))
    expect("runs from the pool", scenes.runs_from_the_pool(capsys))
    for part in ("raw", "preprocessed"):
        for file in sorted((tmp_path / part / POOL).rglob("*.json")):
            keep(file, f"pool/{file.relative_to(tmp_path)}")
    for file in (*weights.parent.parent.glob("*.json"), weights):
        keep(file, f"pool/{file.relative_to(tmp_path)}")
