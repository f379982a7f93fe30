"""torch.compile of what a pre-trainer compiles: whole graphs, none made anew in later epochs."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo.utils import counters

from nnssl.training.factory import trainer_class
from tests.training.recorded_losses import draw_nothing

NAMES = [
    "nnSSLContrastiveTrainer",
    "nnSSLMAETrainer",
    "nnSSLPCRLv2Trainer",  # views of two sizes
    "nnSSLPixelClusteringTrainer",
    "nnSSLSparkTrainer",
]


@pytest.mark.parametrize("name", NAMES)
def test_later_epochs_compile_nothing(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Graphs are traced but not made into machine code, so that it takes seconds."""
    draw_nothing(monkeypatch)
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda _: True)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    length = "num_epochs=4 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1"
    monkeypatch.setenv("nnssl_overrides", f"{length} probe_at_end=false")
    torch._dynamo.reset()
    counters.clear()
    trainer = tiny_dataset.trainer(trainer_class(name))
    trainer.disable_checkpointing = True
    made, end = [], trainer.on_epoch_end

    def count() -> None:
        end()
        made.append(counters["stats"]["unique_graphs"])

    trainer.on_epoch_end = count
    trainer.run_training()
    assert made[0] > 0
    assert made[1:] == [made[1]] * 3, made
    assert not counters["graph_break"], dict(counters["graph_break"])
