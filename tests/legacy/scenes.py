"""What is done with the old data, by the old code when it was made and by today's in the tests.

Each scene returns what must be the same. Settings are in the spelling of the old code.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.training.factory import trainer_class
from tests.tiny import SHAPE, SPACING, write_volume
from tests.training.recorded_losses import Losses, run

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
LOSSES, EXPECTED = DATA / "losses.json", DATA / "expected.json"
CONFIGS = DATA / "configs"

OVERRIDES, WEIGHTS, FOLDERS = "nnssl_overrides", "nnssl_pretrained_weights", "nnssl_configs"
PRETRAINER, FINETUNER = "nnSSLContrastiveTrainer", "nnSSLFinetuneTrainer"
LENGTH = "num_epochs=4 num_iterations_per_epoch=5 num_val_iterations_per_epoch=1"
SMALL = "probe_at_end=false hidden_features=16 embedding_features=8"
UNFINISHED = {
    PRETRAINER: f"{LENGTH} {SMALL} training.seed=1 temperature=0.2 spread=0.5",
    FINETUNER: f"{LENGTH} training.seed=1 encoder_lr_scale=0.5 labels.patients=2 labels.seed=1",
}
STOPPED_AFTER = 8  # steps: inside the second of four epochs
SHORT = "num_epochs=2 num_iterations_per_epoch=3 num_val_iterations_per_epoch=1"

STUDY = """
kind: study
about: {summary: a study of the old code, paper: none, differs: shorter}
study:
  dataset: 999
  configuration: 2d
  plans: nnUNetPlans
  folds: [0]
  unit: patients
  budgets: [1]
  repetitions: 2
pretraining:
  G^D:
    trainer: nnSSLContrastiveTrainer
    seeds: [3]
    overrides: {num_epochs: 2, num_iterations_per_epoch: 5, num_val_iterations_per_epoch: 1,
                hidden_features: 16, embedding_features: 8, probe_patients: 1, probe_draws: 1}
    finetuning: {weights.part: encoder}
  later: {trainer: nnSSLLaterTrainer, waits: trainer}
schedules:
  standard:
    trainer: nnSSLFinetuneTrainer
    scratch_trainer: nnSSLScratchTrainer
    overrides: {num_epochs: 3, num_iterations_per_epoch: 20, num_val_iterations_per_epoch: 1}
"""
CLUSTERS = "-d 999 -c 2d -p nnUNetPlans -f 0 --name old_clusters -k 20 --samples 20000 --workers 1"
POOL, OTHER = "Dataset900_Pool", "Dataset998_Other"
MAKE_POOL = "900 --from 998 999 --plans-of 999 -c 2d -np 1"
LABELS = {
    "patients": "labels.patients=2 labels.seed=1",
    "volumes": "labels.volumes=3 labels.seed=1",
    "percentage": "labels.percentage=50 labels.seed=1",
    "slices": "labels.slices=5 labels.seed=1",
    "cases": "labels.cases=[p1_f0,p3_f1]",
}


# ---------------------------------------------------------------------- commands and runs


def command(name: str) -> Callable[[list[str]], int]:
    """The function behind one of this package's commands, wherever it lies."""
    files = [REPOSITORY / "setup.py", REPOSITORY / "pyproject.toml"]
    text = "\n".join(file.read_text() for file in files if file.is_file())
    (found,) = re.findall(rf'\b{name}"?\s*=\s*"?([\w.]+):(\w+)', text)
    return getattr(import_module(found[0]), found[1])  # type: ignore[no-any-return]


def content(checkpoint: Path) -> dict[str, Any]:
    """Read as any machine can read it."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Stage:
    """Where the scenes play: a dataset, and the test's environment."""

    dataset: Any
    patch: pytest.MonkeyPatch

    def trainer(self, name: str, overrides: str, fold: int | str = 0) -> Any:
        self.patch.setenv(OVERRIDES, overrides)
        self.patch.setenv(FOLDERS, os.pathsep.join(map(str, (CONFIGS, self.dataset.configs))))
        return self.dataset.trainer(trainer_class(name), "2d", fold)

    def train(self, name: str, overrides: str = "", fold: int | str = 0) -> Losses:
        return run(self.trainer(name, overrides, fold))

    def resume(self, name: str) -> Losses:
        """Takes the unfinished run up where it was stopped."""
        trainer = self.trainer(name, UNFINISHED[name])
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        return run(trainer)

    def folder(self, name: str, fold: int | str = 0) -> Path:
        return Path(self.dataset.results) / f"{name}__nnUNetPlans__2d" / f"fold_{fold}"


def labelled(stage: Stage, unit: str) -> list[str]:
    """Training cases of a label budget."""
    trainer = stage.trainer("nnSSLScratchTrainer", LABELS[unit])
    trainer.initialize()
    return list(trainer.do_split()[0])


def probed(stage: Stage) -> dict[str, float]:
    """Dice of frozen features that a finished run of the old contrastive settings has written."""
    encoders = read(stage.folder("nnSSLOldContrastiveTrainer") / "probe.json")["encoders"]
    return {name: encoder["dice"] for name, encoder in encoders.items()}


# ---------------------------------------------------------------------- a study


def study_tells(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What status, report and a dry run say of a finished study."""
    main = command("nnssl_study")
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    status = capsys.readouterr().out
    assert main(["report", str(folder), "--no-images"]) == 0
    again = ["run", str(folder / "study.yaml"), "-o", str(folder), "--dry-run", "--devices", "cpu"]
    capsys.readouterr()
    assert main(again) == 0
    planned = capsys.readouterr().out
    assert main([*again, "--repetitions", "3"]) == 0
    return {
        "status": [line.split() for line in status.splitlines() if line.strip()],
        "report": _report(folder / "report"),
        "planned": _comments(planned),
        "planned for three": _comments(capsys.readouterr().out),
    }


def _report(folder: Path) -> dict[str, Any]:
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    effects = json.loads((folder / "effects.json").read_text())
    return {
        "rows": [{key: _number(text) for key, text in row.items()} for row in rows],
        "unfinished": effects["unfinished"],
        "comparisons": effects["comparisons"],
        "labels_saved": effects["labels_saved"],
        "contamination": {
            title: {
                "contaminated": found["contaminated"],
                "findings": [[each["by"], each["verdict"]] for each in found["findings"]],
            }
            for title, found in effects["contamination"].items()
        },
    }


def _number(text: str) -> Any:
    with suppress(ValueError):
        return float(text)
    return text


def _comments(printed: str) -> list[str]:
    """A line per cell: its name, and whether it is done."""
    return [line for line in printed.splitlines() if line.startswith("# ")]


# ---------------------------------------------------------------------- a pool


def draw_other(root: Path) -> None:
    """A second member: raw images of three patients, and the small files that a pool reads."""
    raw, preprocessed = root / "raw" / OTHER, root / "preprocessed" / OTHER
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed / "nnssl"):
        folder.mkdir(parents=True)
    cases = ["a", "b", "c"]
    for number, case in enumerate(cases):
        write_volume(raw, case, 100 + number)
    labels = {"background": 0, "shell": 1, "core": 2}
    channels, ending = {"0": "MRI"}, ".nii.gz"
    dataset = {"channel_names": channels, "labels": labels, "numTraining": 3, "file_ending": ending}
    records = {case: {"patient": case, "dataset": "Other", "part": "Tr"} for case in cases}
    splits = [{"train": [c for c in cases if c != val], "val": [val]} for val in cases]
    _write(raw / "dataset.json", dataset)
    _write(preprocessed / "nnssl" / "cases.json", {"cases": records, "version": 1})
    _write(preprocessed / "splits_final.json", splits)
    for folder, number in ((preprocessed, 3), (root / "preprocessed" / "Dataset999_Tiny", 10)):
        fingerprint = {
            "spacings": [list(SPACING)] * number,
            "shapes_after_crop": [list(SHAPE)] * number,
            "median_relative_size_after_cropping": 1.0,
        }
        _write(folder / "dataset_fingerprint.json", fingerprint)


def pool_stage(stage: Stage) -> Stage:
    """The same environment with the pool as its dataset."""
    home = stage.dataset
    pool = replace(
        home,
        raw=home.raw.parent / POOL,
        preprocessed=home.preprocessed.parent / POOL,
        results=home.results.parent / POOL,
        plans=read(home.preprocessed.parent / POOL / "nnUNetPlans.json"),
        dataset_json=read(home.preprocessed.parent / POOL / "dataset.json"),
    )
    return Stage(pool, stage.patch)


def pool_verdicts(stage: Stage, weights: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fine-tuning from weights of the pool's fold 0: what is taken, and what is refused."""
    stage.patch.setenv(WEIGHTS, str(weights))
    allowed = "weights.allow_contamination=true"
    yield "fold 0", _verdict(stage, 0)
    yield "fold 1", _verdict(stage, 1)
    yield "fold 1, allowed", _verdict(stage, 1, allowed)
    yield "fold all", _verdict(stage, "all")
    pool = stage.dataset.preprocessed.parent / POOL
    pool.rename(pool.with_name("away"))
    yield "fold 0 without the pool's records", _verdict(stage, 0, "training.seed=1")
    yield "fold 1 without the pool's records", _verdict(stage, 1, "training.seed=1")
    file = stage.dataset.preprocessed / "splits_final.json"
    kept = file.read_text()
    splits = json.loads(kept)
    _write(file, [{"train": splits[0]["train"][1:], "val": splits[0]["val"]}, *splits[1:]])
    yield "fold 0 without the pool's records, other folds", _verdict(stage, 0, "training.seed=2")
    file.write_text(kept)
    pool.with_name("away").rename(pool)
    stage.patch.delenv(WEIGHTS)


def _verdict(stage: Stage, fold: int | str, more: str = "") -> dict[str, Any]:
    length = "num_epochs=1 num_iterations_per_epoch=1 num_val_iterations_per_epoch=1"
    try:
        stage.train(FINETUNER, f"{length} overwrite=true {more}", fold)
    except ValueError as error:
        return {"refused": POOL in str(error) or str(error)}
    final = stage.folder(FINETUNER, fold) / "checkpoint_final.pth"
    record = content(final)["nnssl"]["weights"]
    return {key: record[key] for key in ("contaminated", "seen_validation_cases")}


def runs_from_the_pool(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Last words on every fine-tuning from the pool, by `nnssl_pool 900 --check`."""
    capsys.readouterr()
    with suppress(SystemExit):  # the images are younger than their records
        command("nnssl_pool")(["900", "--check"])
    told = capsys.readouterr().out
    assert "have changed since the pool was made" not in told
    return [line.rpartition("/")[2] for line in told.splitlines() if f" of {POOL}: " in line]


# ---------------------------------------------------------------------- files


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def place(name: str, target: Path) -> Path:
    """Copies stored data to where a run of today finds it."""
    shutil.copytree(DATA / name, target, dirs_exist_ok=True)
    return target


def image_bytes(dataset: Any) -> dict[str, int]:
    """Sizes of preprocessed images, by which cluster maps know them."""
    folder = dataset.preprocessed / "nnUNetPlans_2d"
    files = sorted(file for file in folder.glob("*.b2nd") if not file.stem.endswith("_seg"))
    return {file.stem: file.stat().st_size for file in files}


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Where today's result lacks what the old one has; numbers may differ by rounding."""
    if isinstance(old, Mapping):
        if not isinstance(new, Mapping):
            return [f"{where}: {old!r} became {new!r}"]
        lost = [f"{where}.{key} is gone" for key in old if key not in new]
        kept = [key for key in old if key in new]
        return lost + [
            line for key in kept for line in differences(old[key], new[key], f"{where}.{key}")
        ]
    if isinstance(old, list):
        if not isinstance(new, list) or len(old) != len(new):
            return [f"{where}: {old!r} became {new!r}"]
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    if isinstance(old, float) and new == pytest.approx(old, rel=1e-6, abs=1e-9, nan_ok=True):
        return []
    return [] if old == new else [f"{where}: {old!r} became {new!r}"]
