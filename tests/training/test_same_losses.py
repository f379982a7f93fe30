"""The same seed gives the same losses as when they were recorded, for every shipped trainer.

Twenty steps of each trainer on the tiny dataset, on one thread of the CPU, through the trainer's
own loop. Where processor and libraries are those of the record, losses and weights must be the same
to the last bit; elsewhere the first steps must agree (see `recorded_losses`).

To record anew: `NNSSL_RECORD=1 python -m pytest tests/training/test_same_losses.py` (add `-k NAME`
for one trainer), and commit `recorded/losses.json`. That is legitimate

- for a new trainer, or one that is shipped no more;
- when a commit means to change what a trainer computes, and says so, for the trainers it names;
- when torch or another library has changed, at a commit that passed before that change.

It is not a way to make a failing test pass: what only moves or renames code changes no bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.config import find_configs, read_config
from nnssl.training.factory import trainer_class
from tests.training.recorded_losses import Losses, Records, draw_nothing, run

FILE = Path(__file__).parent / "recorded" / "losses.json"
LENGTH = "num_epochs=4 num_iterations_per_epoch=5 num_val_iterations_per_epoch=1"
KNOBS = {
    "pretrain": f"{LENGTH} probe_at_end=false",
    "finetune": LENGTH,
    "semi_supervised": f"{LENGTH} labels.patients=1",
}
FINDING = ("nnSSLFinetune", "nnSSLSemiSupervisedTrainer")  # begin names of what finds a run
SHORTER = {  # end names of trainers whose schedule is longer than the run
    "WarmupTrainer": "warmup_epochs=1",
    "SawtoothTrainer": "warmup_epochs=1 freeze_encoder_epochs=1",
}
SOURCE = "nnSSLMAETrainer"  # gives fine-tuning its weights
CONFIGURATIONS = ("2d", "3d_fullres")


def shipped() -> list[str]:
    """Names of all trainers of this package, none of a user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnssl_configs", "")
        return list(find_configs())


RUNS = [(name, configuration) for name in shipped() for configuration in CONFIGURATIONS]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


def losses_of(
    name: str, configuration: str, dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> Losses:
    kind = read_config(name).kind
    shorter = [knobs for end, knobs in SHORTER.items() if name.endswith(end)]
    monkeypatch.setenv("nnssl_overrides", " ".join([KNOBS[kind], *shorter]))
    return run(dataset.trainer(trainer_class(name), configuration))


@pytest.mark.parametrize(("name", "configuration"), RUNS)
def test_same_seed_same_losses(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str
) -> None:
    training = read_config(name).sections.get("training") or {}
    source = SOURCE if name.startswith(FINDING) else training.get("initial_weights")
    if source is not None:
        losses_of(source, configuration, tiny_dataset, monkeypatch)
    found = losses_of(name, configuration, tiny_dataset, monkeypatch)
    assert len(found.train) == 20
    assert len(found.validation) == 4
    Records(FILE).check(f"{name} {configuration}", found)


def test_no_record_is_left_over() -> None:
    """A trainer that was renamed or dropped must not keep its record."""
    names = [f"{name} {configuration}" for name, configuration in RUNS]
    records = Records(FILE)
    if records.recording():
        records.keep(names)
    assert set(records.runs) <= set(names)
