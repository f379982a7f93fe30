"""nnU-Net's own command with -pretrained_weights: nothing in the file is executed."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import run_training_entry

from nnssl.nnunet.stock_weights import find_stock_weights
from nnssl.training.factory import trainer_class

COMMAND = ["nnUNetv2_train", "999", "2d", "0", "-device", "cpu", "-tr"]


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return subprocess.call, (["touch", str(self.mark)],)


@pytest.fixture(params=["in a checkpoint", "plain pickle"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A file that executes something, and the mark that this would leave."""
    file, mark = tmp_path / "hostile.pth", tmp_path / "executed"
    content = {"network_weights": {}, "more": Payload(mark)}
    if request.param == "plain pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    return file, mark


@pytest.fixture
def train(tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`train(name, *options)`: nnU-Net's command line in this process, with one of our trainers."""

    def run(name: str, *options: str) -> None:
        trainer = tiny_dataset.trainer(trainer_class(name))
        find = "nnunetv2.run.run_training.get_trainer_from_args"
        monkeypatch.setattr(find, lambda *_, **__: trainer)
        monkeypatch.setattr(sys, "argv", [*COMMAND, name, *options])
        run_training_entry()

    return run


def test_fine_tuning_refuses_a_file_that_could_run_code(train, hostile):
    file, mark = hostile
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        train("nnSSLFinetuneTrainer", "-pretrained_weights", str(file))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        train("nnSSLFinetuneTrainer", f"-pretrained_weights={file}")
    with pytest.raises(SystemExit):  # nnU-Net's own: it takes no beginning of the option
        train("nnSSLFinetuneTrainer", "-pretrained", str(file))
    assert not mark.exists()


def test_without_our_look_nnunet_would_execute_it(train, hostile, monkeypatch):
    """Else the test above shows nothing."""
    file, mark = hostile
    monkeypatch.setattr("nnssl.training.finetuner.check_stock_weights", lambda: None)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever nnU-Net says of empty weights
        train("nnSSLFinetuneTrainer", "-pretrained_weights", str(file))
    assert mark.exists()


def test_pre_training_refuses_the_option_with_the_setting_to_use(train, hostile):
    file, mark = hostile
    with pytest.raises(ValueError, match=r"initial_weights: .*hostile\.pth"):
        train("nnSSLMAETrainer", "-pretrained_weights", str(file))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("27 2d 0 -tr nnSSLFinetuneTrainer -p nnUNetPlans --c", None),
        ("27 2d 0 -pretrained_weights a/b.pth -p nnUNetPlans", "a/b.pth"),
        ("27 2d 0 -p nnUNetPlans -pretrained_weights=b.pth", "b.pth"),
        ("27 2d 0 --npz -device cpu -num_gpus 2", None),
        ("", None),  # a program of the user's that takes no arguments
    ],
)
def test_the_option_is_found_as_nnunet_finds_it(line: str, file: str | None):
    assert find_stock_weights(line.split()) == (Path(file) if file else None)
