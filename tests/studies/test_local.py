"""Scheduling with real processes: order, retries, blocked cells, stops, kills, two runs at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnssl.studies.run import attempts
from nnssl.studies.run.devices import make_slots, share_cores
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.local import LocalRunner

SEED_0, SEED_1 = (f"pretrain-nnSSLContrastiveTrainer-s{seed}-f0" for seed in (0, 1))
RUNNER = """
import sys
from dataclasses import replace
from nnssl.studies.run.devices import make_slots
from nnssl.studies.run.folder import open_study
from nnssl.studies.run.local import LocalRunner
folder = replace(open_study(sys.argv[1]), program=tuple(sys.argv[2:]))
sys.exit(LocalRunner(folder, folder.cells, make_slots(["cpu"], 3)).run().exit_code)
"""


def run(folder: StudyFolder, processes: int = 3):
    return LocalRunner(folder, folder.cells, make_slots(["cpu"], processes)).run()


def start(folder: StudyFolder) -> subprocess.Popen:
    """A runner in a process of its own."""
    folder.write()
    command = [sys.executable, "-c", RUNNER, str(folder.path), *folder.program]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def dices(folder: StudyFolder) -> dict[str, float | None]:
    return {cell.id: folder.dice(cell) for cell in folder.cells}


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr("nnssl.studies.run.local.SECONDS_BETWEEN_LOOKS", 0.02)


@pytest.fixture
def small(study_folder) -> StudyFolder:
    """Pre-training and two repetitions of one budget."""
    study = study_folder.study
    arms = {"G^D": study.pretraining["G^D"]}
    return replace(study_folder, study=replace(study, pretraining=arms, budgets=(1,)))


def test_every_cell_runs_once_after_what_it_needs(study_folder, stage, capsys):
    stage.direct(seconds=0.1)  # long enough to start what needs the weights too early
    outcome = run(study_folder, processes=5)
    grid = study_folder.cells
    assert outcome.exit_code == 0
    assert sorted(outcome.done) == sorted(cell.id for cell in grid)
    calls = stage.calls()
    at = {(call["cell"], call["event"]): number for number, call in enumerate(calls)}
    assert len(calls) == 2 * len(grid)
    for cell in grid:
        assert cell.needs is None or at[cell.needs, "end"] < at[cell.id, "start"]
    printed = capsys.readouterr().out
    for cell in grid:
        dice = study_folder.dice(cell)
        told = f"done     {cell.id}{f'  Dice {dice:.3f}' if dice else ''}  "
        assert re.search(rf"{re.escape(told)}\d\.\d min", printed)


def test_independent_cells_run_side_by_side_and_no_more_than_asked(small, stage):
    stage.direct(seconds=0.5)
    run(small, processes=2)
    running, most = 0, 0
    for call in stage.calls():
        running += {"start": 1, "end": -1}[call["event"]]
        most = max(most, running)
    assert most == 2


def test_the_record_of_a_cell(small):
    run(small)
    cell = small.cells[1]
    record = json.loads((small.cell_folder(cell) / "cell.json").read_text())
    (attempt,) = record.pop("attempts")
    assert {k: record[k] for k in cell.to_dict()} == cell.to_dict()
    assert record["steps"] == 30
    assert (attempt["returncode"], attempt["done"], attempt["interrupted"]) == (0, True, False)
    assert attempt["variables"]["nnssl_overrides"].endswith("labels.patients=1 labels.seed=0")
    assert attempt["command"][-2:] == ["-device", "cpu"]
    assert (small.cell_folder(cell) / attempt["log"]).is_file()
    assert {"nnssl", "nnunetv2", "torch", "python"} <= set(record["versions"])
    assert record["machine"]["cores"] == os.cpu_count()


def test_what_is_done_already_is_not_run(small, stage):
    cell = small.cells[1]
    folder = small.fold_folder(cell) / "validation"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"foreground_mean": {"Dice": 0.5}}')
    (folder.parent / "checkpoint_final.pth").touch()
    assert run(small).exit_code == 0
    assert stage.starts(cell.id) == []
    before = len(stage.calls())
    assert run(small).exit_code == 0
    assert len(stage.calls()) == before


def test_without_what_only_linux_has(small, stage, monkeypatch):
    for name in ("waitid", "killpg", "pwrite"):
        monkeypatch.delattr(os, name)
    assert run(small).exit_code == 0
    assert [small.state(cell) for cell in small.cells] == ["done"] * len(small.cells)


def test_a_cell_that_fails_once_is_retried(small, stage):
    stage.direct(fail={"gd-p1-r0-f0-standard": 1, SEED_0: 1})
    assert run(small).exit_code == 0
    assert len(stage.starts(SEED_0)) == len(stage.starts("gd-p1-r0-f0-standard")) == 2
    assert [a["returncode"] for a in small.record(small.cells[0])["attempts"]] == [3, 0]


def test_a_cell_that_fails_twice_is_told_and_what_needs_it_is_blocked(small, stage):
    stage.direct(fail={SEED_0: 2})
    outcome = run(small)
    assert outcome.exit_code == 1
    assert outcome.failed == {SEED_0: ["something went wrong"]}
    assert outcome.blocked == {"gd-p1-r0-f0-standard": SEED_0}
    assert len(stage.starts(SEED_0)) == 2
    assert stage.starts("gd-p1-r0-f0-standard") == []
    assert "gd-p1-r1-f0-standard" in outcome.done
    assert run(small).exit_code == 0, "running again tries it again"


def test_an_end_without_result_is_a_failure(small, stage):
    outcome = run(replace(small, program=("true",)))
    assert outcome.exit_code == 1
    assert set(outcome.failed) | set(outcome.blocked) == {c.id for c in small.cells}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_goes_on(small, stage, number):
    stage.direct(seconds=0.2)
    runner = start(small)
    wait_for(lambda: any((small.path / "cells").glob("*/*/*/*/checkpoint_latest.pth")))
    runner.send_signal(number)
    runner.communicate()
    assert runner.returncode == 128 + number
    stopped = {call["cell"] for call in stage.calls() if call["event"] == "stopped"}
    assert stopped
    assert not any(map(small.has_failed, small.cells))
    stage.direct()
    assert run(small).exit_code == 0
    for cell in stopped:
        assert [call["resumed"] for call in stage.starts(cell)] == [False, True]


def test_a_killed_run_goes_on_and_gives_the_same_table(small, stage, tmp_path):
    stage.direct(seconds=0.1)
    for _ in range(3):
        before = len(stage.calls())
        runner = start(small)
        wait_for(lambda before=before: len(stage.calls()) > before + 1)
        runner.kill()
        runner.communicate()
    assert run(small).exit_code == 0
    orphans_too = [c["event"] for c in stage.calls() if c["cell"] == SEED_0]
    assert orphans_too == ["start", "end"], "a training that outlives its runner is not doubled"
    other = replace(small, path=tmp_path / "other")
    stage.direct()
    run(other)
    assert dices(small) == dices(other)
    assert sum(dice is not None for dice in dices(small).values()) == 4


def test_two_runs_of_one_folder_share_the_cells(small, stage):
    stage.direct(seconds=0.05)
    other = start(small)
    outcome = run(small)
    other.communicate()
    assert (outcome.exit_code, other.returncode) == (0, 0)
    starts = [call["cell"] for call in stage.calls() if call["event"] == "start"]
    assert sorted(starts) == sorted(cell.id for cell in small.cells)
    assert len(outcome.done) == len(starts)


def test_shares_of_cores():
    assert share_cores([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert share_cores([4, 5], 3) == [[4], [5], [4]]
    assert share_cores([0, 1], 1) == [[0, 1]]


def test_slots_of_gpus_and_cpus(monkeypatch):
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("nnssl.studies.run.devices._find_cores", lambda: [0, 1, 2, 3])
    first, second = make_slots(["cpu"], 2)
    assert first.prefix == ("taskset", "-c", "0,1")
    assert second.prefix == ("taskset", "-c", "2,3")
    assert first.arguments == ("-device", "cpu")
    assert first.variables == {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "2",
    }
    gpus = make_slots(["0", "3"], 4)
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in gpus] == ["0", "3", "0", "3"]
    assert [slot.arguments for slot in gpus] == [()] * 4
    monkeypatch.setenv("nnUNet_n_proc_DA", "7")
    assert "nnUNet_n_proc_DA" not in make_slots(["0"], None)[0].variables
    for wrong in (["cpu", "0"], ["cuda"]):
        with pytest.raises(ValueError, match="--devices: found"):
            make_slots(wrong, None)
    with pytest.raises(ValueError, match="--processes: found 0"):
        make_slots(["cpu"], 0)


def test_a_stop_needs_no_more_than_the_saving(small, stage, monkeypatch):
    """A process that does not listen is ended by force."""
    monkeypatch.setattr(attempts, "SECONDS_TO_SAVE", 0.2)
    deaf = (sys.executable, "-S", "-c", "import signal, time\nsignal.signal(15, 1)\ntime.sleep(60)")
    runner = LocalRunner(replace(small, program=deaf), small.cells, make_slots(["cpu"], 2))
    start_one = runner._start_what_can_start

    def start_then_stop():
        start_one()
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "_start_what_can_start", start_then_stop)
    begin = time.monotonic()
    assert runner.run().exit_code == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 20
    assert not Path(f"/proc/{runner.running[0].process.pid}").exists()
