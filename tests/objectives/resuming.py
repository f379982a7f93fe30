"""A run that is stopped and goes on has the weights of one that is not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import stop_after

KNOBS = "num_epochs=2 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1 warmup_epochs=0"


def check_resumed(dataset: Any, kind: type, stop_at: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compares two runs of 4 steps, one of them stopped after `stop_at`; returns the other."""
    monkeypatch.setenv("nnssl_overrides", f"{KNOBS} probe_at_end=false")
    whole = dataset.trainer(kind)
    whole.run_training()
    for file in Path(whole.output_folder).glob("*.pth"):
        file.unlink()
    stopped = dataset.trainer(kind)
    stop_after(stopped, stop_at)
    with pytest.raises(SystemExit):
        stopped.run_training()
    resumed = dataset.trainer(kind)
    resumed.load_checkpoint(str(Path(stopped.output_folder) / "checkpoint_latest.pth"))
    resumed.run_training()
    for key, value in whole.objective.state_dict().items():
        assert torch.equal(resumed.objective.state_dict()[key], value), key
    return whole
