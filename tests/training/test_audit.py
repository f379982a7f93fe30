"""The audit of shortcuts in a run: what is logged, when it warns, and whom it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnssl.probe import shortcuts
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class

YAML = """
kind: pretrain
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0}
probe: {probe_patients: 1, probe_draws: 1, probe_volumes: 1%s}
views: {global: {count: 1, flip: 0.0}}
objective: {name: %s}
"""
Run = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """`run(objective, probe)`: history and log of a run of two steps."""

    def train(objective: str, probe: str = "") -> tuple[dict[str, Any], str]:
        trainer_yaml("nnSSLAudited", YAML % (probe, objective))
        trainer_class.cache_clear()
        trainer = tiny_dataset.trainer(trainer_class("nnSSLAudited"))
        trainer.run_training()
        logs = Path(trainer.output_folder).glob("training_log*.txt")
        return trainer.history.values, "".join(log.read_text() for log in logs)

    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    return train


def test_a_predictive_task_is_asked_about_noise_and_flat_images(run: Run) -> None:
    history, log = run("rotation")
    limit = history["probe_accuracy_limit"][0]
    assert history["chance"][0] == pytest.approx(0.25)
    assert 0.25 < limit < 1
    for kind in ("noise", "flat"):  # a network of two steps guesses
        assert history[f"probe_{kind}_accuracy"][0] <= limit
    assert "Task: 4 rotations of 16x16 voxels" in log
    assert "can be solved without anatomy" not in log


def test_a_cheated_task_is_named_in_the_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "DEVIATIONS", -3)  # any accuracy is too good
    assert "WARNING: the pretext task can be solved without anatomy" in run("rotation")[1]


@pytest.mark.parametrize(
    ("objective", "probe"), [("mae", ""), ("rotation", ", probe_shortcut: no")]
)
def test_others_are_not_asked(run: Run, objective: str, probe: str) -> None:
    history, _ = run(objective, probe)
    assert "probe_dice" in history
    assert "probe_accuracy_limit" not in history
