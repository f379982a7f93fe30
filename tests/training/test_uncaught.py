"""What a user of nnUNetv2_train sees of an error, and that nobody else sees a difference."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from nnunetv2.run import run_training

from nnssl.training import uncaught
from nnssl.training.factory import trainer_class

REPOSITORY = Path(__file__).resolve().parents[2]
LOG = "traceback: "


@pytest.fixture
def ending(tiny_dataset, monkeypatch, capsys):
    """`ending(line)` runs the command of nnU-Net in this process; what its hook tells on stderr."""
    monkeypatch.setattr(sys, "excepthook", lambda *_: print("TRACEBACK", file=sys.stderr))

    def find(name: str) -> type:
        namespace = {"__name__": "forwarding"}
        source = REPOSITORY / "nnssl" / "external_trainers" / "nnssl_trainers.py"
        exec(compile(source.read_text(), "forwarding", "exec"), namespace)
        try:
            return namespace["__getattr__"](name)
        except AttributeError:
            raise RuntimeError(f"Could not find requested nnunet trainer {name}") from None

    monkeypatch.setattr(run_training, "recursive_find_trainer_class_by_name", find)

    def end(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", *line.split(), "-device", "cpu"])
        trainer_class.cache_clear()  # as in a process of its own
        with pytest.raises(Exception) as caught:  # noqa: PT011
            run_training.run_training_entry()
        capsys.readouterr()
        sys.excepthook(caught.type, caught.value, caught.tb)
        return capsys.readouterr().err

    return end


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("999 2D 0 -tr nnSSLMAETrainer", "nnUNetPlans has 2d, 3d_fullres (did you mean '2d'?)"),
        ("999 2d 0 -tr nnSSLMAETrainer -p nnUNetPlan", "(did you mean 'nnUNetPlans'?); run first"),
        ("998 2d 0 -tr nnSSLMAETrainer", "dataset 998: one folder of it is needed, found none"),
        ("999 2d 0 -tr nnsslMAETrainer", "did you mean 'nnSSLMAETrainer'"),
        ("999 2d 0 -tr nnSSLMAETraner", "did you mean 'nnSSLMAETrainer'"),
        ("999 2d 0 -tr ContrastiveTrainer", "nnU-Net: Could not find requested"),
    ],
)
def test_what_the_user_can_mend_is_told_alone(ending, line, told):
    text = ending(line)
    assert told in text
    assert "TRACEBACK" not in text
    assert text.endswith("(nnssl_traceback=1 shows the traceback)\n")


def test_the_traceback_is_in_the_log_of_the_run(ending, tiny_dataset):
    for file in tiny_dataset.preprocessed.glob("nnUNetPlans_2d/*"):
        file.unlink()
    text = ending("999 2d 0 -tr nnSSLMAETrainer")
    assert "Dataset999_Tiny is not preprocessed for 2d of nnUNetPlans" in text
    log = Path(text.strip().splitlines()[-1].strip("()").removeprefix(LOG))
    assert "Traceback" in log.read_text()
    assert "check_preprocessed" in log.read_text()


def test_other_errors_keep_their_traceback(ending, monkeypatch):
    line = "999 2D 0 -tr nnSSLMAETrainer"
    monkeypatch.setenv("nnssl_traceback", "1")
    assert ending(line) == "TRACEBACK\n"
    monkeypatch.delenv("nnssl_traceback")
    assert ending("999 2d 0 -tr QuiteAnother") == "TRACEBACK\n"  # stock's error, no name is near
    monkeypatch.setattr("nnssl.training.configured.check_plans", lambda *_: int("a bug"))
    assert ending(line) == "TRACEBACK\n"


def test_python_code_sees_no_difference(capsys):
    """The same error outside a command of nnU-Net goes to the former hook."""
    uncaught.tell_alone()
    before = sys.excepthook
    uncaught.tell_alone()
    assert sys.excepthook == before
    with pytest.raises(ValueError, match="there is no trainer") as caught:
        trainer_class("nnSSLNoneTrainer")
    assert uncaught._tell(caught.value, caught.tb) is None
