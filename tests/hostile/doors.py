"""Where a checkpoint of others comes in, and what happened there."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.cli import cluster, inspect, plan_like, probe, runs
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import FINAL, LATEST
from nnssl.training.factory import trainer_class
from tests.tiny import TinyDataset

PRETRAINER, FINETUNER = "nnSSLHostilePretrainer", "nnSSLHostileFinetuner"
PRETRAINING = """
extends: nnSSLMAETrainer
training: {num_epochs: 1, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0}
probe: {probe_at_end: false}
"""
FINETUNING = """
extends: nnSSLFinetuneTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1,
           warmup_epochs: 0}
labels: {patients: 1}
"""
Door = Callable[[TinyDataset, Path, Any], None]


def train(dataset: TinyDataset, name: str) -> Path:
    """A short run; returns its final checkpoint."""
    trainer = dataset.trainer(trainer_class(name))
    trainer.run_training()
    return Path(trainer.output_folder) / FINAL


def resume(name: str) -> Door:
    def go(dataset: TinyDataset, file: Path, patch: Any) -> None:
        trainer = dataset.trainer(trainer_class(name))
        trainer.load_checkpoint(str(file))
        trainer.on_train_start()
        trainer.close()

    return go


def fine_tune(dataset: TinyDataset, file: Path, patch: Any) -> None:
    patch.setenv("nnssl_pretrained_weights", str(file))
    trainer = dataset.trainer(trainer_class(FINETUNER))
    try:
        trainer.on_train_start()
        trainer.close()
    finally:
        patch.delenv("nnssl_pretrained_weights")


def begin_with(dataset: TinyDataset, file: Path, patch: Any) -> None:
    patch.setenv("nnssl_overrides", f"training.initial_weights='{file}'")
    trainer = dataset.trainer(trainer_class(PRETRAINER))
    try:
        trainer.on_train_start()
        trainer.close()
    finally:
        patch.delenv("nnssl_overrides")


def command(main: Callable[[list[str]], int], *options: str) -> Door:
    def go(dataset: TinyDataset, file: Path, patch: Any) -> None:
        main([option.replace("FILE", str(file)) for option in options])

    return go


def list_in_results(dataset: TinyDataset, file: Path, patch: Any) -> None:
    """`nnssl_runs` with the file as a run; it must list all the same."""
    folder = dataset.results / f"{PRETRAINER}__nnUNetPlans__2d" / "fold_3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LATEST).unlink(missing_ok=True)
    (folder / LATEST).hardlink_to(file)
    runs.main([])


DOORS: dict[str, Door] = {
    "read": lambda dataset, file, patch: read_checkpoint(file) and None,
    "resume pre-training": resume(PRETRAINER),
    "resume fine-tuning": resume(FINETUNER),
    "fine-tune": fine_tune,
    "initial weights": begin_with,
    "nnssl_inspect": command(inspect.main, "FILE", "-d", "999"),
    "nnssl_plan_like": command(plan_like.main, "FILE", "-d", "999", "-c", "2d", "--name", "Like"),
    "nnssl_cluster": command(
        cluster.main, "-d", "999", "-c", "2d", "-f", "1", "-k", "2", "--samples", "100",
        "--source", "self", "--checkpoint", "FILE", "--workers", "1", "--name", "hostile",
    ),
    "nnssl_probe": command(
        probe.main, "999", "2d", "1", "--weights", "FILE", "--patients", "1", "-device", "cpu"
    ),
    "nnssl_runs": list_in_results,
}  # fmt: skip


@dataclass
class Harness:
    """Tries files at doors, and keeps what happened."""

    dataset: TinyDataset
    patch: Any
    capture: Any
    verdicts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def try_all(self, payload: str, file: Path, doors: Iterable[str] = DOORS) -> None:
        for door in doors:
            self.try_one(payload, file, door)

    def try_one(self, payload: str, file: Path, door: str, must_refuse: bool = False) -> str:
        """`refused` with the file's name, `accepted`, or `bare` for anything else."""
        verdict, text = "accepted", ""
        for left in (self.dataset.results, *self.dataset.preprocessed.glob("nnssl/*/hostile")):
            shutil.rmtree(left, ignore_errors=True)
        try:
            DOORS[door](self.dataset, file, self.patch)
        except SystemExit as error:
            verdict, text = "refused", str(error.code)
        except (ValueError, OSError) as error:
            verdict, text = "refused", str(error)
        except Exception as error:
            verdict, text = "bare", f"{type(error).__name__}: {error}"
        self.capture.readouterr()
        if verdict == "refused" and file.name not in text:
            verdict = "unnamed"
        self.verdicts[verdict] += 1
        if verdict in ("bare", "unnamed") or (must_refuse and verdict != "refused"):
            self.bad.append(f"{door} <- {payload}: {verdict}: {text[:300]}")
        return verdict

    def report(self) -> str:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items())
        return "\n".join([counts, *self.bad])
