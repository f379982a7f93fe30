"""Two processes pre-train together: equal weights, one checkpoint, one decision to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

NAME = "nnSSLTogether"
SETTINGS = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 2, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 1}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8, normalisation: layer}
probe: {probe_patients: 1, probe_draws: 1, probe_volumes: 1}
"""


def _trainer(plans: dict[str, Any], dataset_json: dict[str, Any]) -> Any:
    """As nnU-Net builds it in each process, but on the CPU."""
    from nnssl.training import preflight
    from nnssl.training.factory import trainer_class

    preflight.check_export = lambda *_: None  # nnU-Net's own loader wants CUDA here
    trainer = trainer_class(NAME)(deepcopy(plans), "2d", 0, dataset_json)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.history.plot = lambda *_: None
    return trainer


def _run(rank: int, plans: dict[str, Any], dataset_json: dict[str, Any]) -> dict[str, Any]:
    trainer = _trainer(plans, dataset_json)
    trainer.run_training()
    return {
        "weights": {k: v.clone() for k, v in trainer.objective.state_dict().items()},
        "negatives": trainer.history.values["negatives"],
        "loss": trainer.history.values["train_loss"],
        "drawn": trainer.batch_maker(0)["identifier"],
    }


def _stop(rank: int, plans: dict[str, Any], dataset_json: dict[str, Any]) -> int:
    """Only rank 1 is asked to stop, inside the first epoch."""
    trainer = _trainer(plans, dataset_json)
    step = trainer.train_step

    def asked(batch: Any) -> Any:
        if rank == 1 and trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = asked
    try:
        trainer.run_training()
    except SystemExit:
        return int(trainer.step)
    return -1


def test_ranks_agree(
    tiny_dataset: Any,
    trainer_yaml: Callable[[str, str], str],
    two_processes: Callable[..., list[Any]],
) -> None:
    trainer_yaml(NAME, SETTINGS)
    arguments = tiny_dataset.plans, tiny_dataset.dataset_json
    first, second = two_processes(_run, *arguments)
    assert all(torch.equal(v, second["weights"][k]) for k, v in first["weights"].items())
    assert first["loss"] == second["loss"]
    assert first["negatives"][0] == 8  # twice the 4 of one process: negatives grow with the ranks
    assert first["drawn"] != second["drawn"]
    finals = list(Path(tiny_dataset.results).rglob("checkpoint_final.pth"))
    assert len(finals) == 1


def test_a_stop_signal_on_one_rank_stops_all_after_the_same_step(
    tiny_dataset: Any,
    trainer_yaml: Callable[[str, str], str],
    two_processes: Callable[..., list[Any]],
) -> None:
    trainer_yaml(NAME, SETTINGS)
    assert two_processes(_stop, tiny_dataset.plans, tiny_dataset.dataset_json) == [2, 2]
    latest = list(Path(tiny_dataset.results).rglob("checkpoint_latest.pth"))
    assert len(latest) == 1
