"""How commands end: message and status, interruption, a reader that has gone."""

import argparse
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from nnssl.cli.command import command, dataset_id


def of_nnssl(error: BaseException) -> None:
    """Raises it as code of nnSSL would."""
    exec(compile("raise error", "here", "exec"), {"__name__": "nnssl.here", "error": error})


def ending(error: BaseException | None, **options) -> int:
    @command("nnssl_this", "Does nothing.", example="", **options)
    def main(_: argparse.Namespace) -> None:
        if error is not None:
            of_nnssl(error)

    return main([])


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("bad"), BrokenPipeError("bad")])
def test_errors_for_the_user_are_one_message(error):
    """A broken pipe inside (a worker process that died) is told like any other."""
    with pytest.raises(SystemExit, match=r"^nnssl_this: bad$"):
        ending(error)


def test_other_errors_are_for_programmers_unless_named(monkeypatch):
    with pytest.raises(ValueError, match="invalid literal"):
        command("nnssl_this", "Does nothing.", example="")(lambda _: int("a bug"))([])
    with pytest.raises(LookupError):
        ending(LookupError("bad"))
    with pytest.raises(SystemExit, match=r"^nnssl_this: bad$"):
        ending(LookupError("bad"), errors=(LookupError,))
    monkeypatch.setenv("nnssl_traceback", "1")
    with pytest.raises(ValueError, match="bad"):
        ending(ValueError("bad"))


def test_an_interruption_is_told_with_its_status(capsys):
    assert ending(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "nnssl_this: interrupted\n"
    assert ending(KeyboardInterrupt(), resumes=True) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_no_result_is_success():
    assert ending(None) == 0


COMMANDS = [entry for entry in entry_points(group="console_scripts") if "nnssl.cli" in entry.value]


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_ends_this_way_and_under_its_own_name(entry, monkeypatch):
    def refuse(*_):
        of_nnssl(ValueError("bad"))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", refuse)
    with pytest.raises(SystemExit, match=f"^{entry.name}: bad$"):
        entry.load()([])


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_takes_a_dataset_by_number_or_name(entry, monkeypatch):
    parser = entry.load().make_parser()
    names = {"dataset_id", "dataset", "pool_id", "members", "plans_of", "spacing_of"}
    for option in parser._actions:
        assert option.dest not in names or option.type in (None, dataset_id)


def test_a_dataset_is_a_number_or_a_name_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    (tmp_path / "Dataset210_P").mkdir()
    assert [dataset_id(text) for text in ("210", "Dataset210_P", "Dataset007_New")] == [210, 210, 7]
    with pytest.raises(argparse.ArgumentTypeError, match="no Dataset210_Q; 210 is Dataset210_P"):
        dataset_id("Dataset210_Q")
    for text in ("P", "-3", "1.5", "Dataset_P", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="allowed are a number"):
            dataset_id(text)


def test_a_reader_that_stops_reading_gets_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "nnssl.cli.study", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()  # before anything is printed: imports take longer
    _, complaint = process.communicate()
    assert complaint == b""
    assert process.returncode == 1
