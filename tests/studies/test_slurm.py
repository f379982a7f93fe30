"""Jobs through submitit, on this machine: dependencies, retries, saving when the time is over."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from nnssl.studies.run.grid import cells
from nnssl.studies.run.slurm import CellJob, _after, _groups, _limit, _slot, submit

submitit = pytest.importorskip("submitit")


@pytest.fixture
def small(bench, monkeypatch):
    monkeypatch.setattr("nnssl.studies.run.slurm.SECONDS_BETWEEN_LOOKS", 0.02)
    arms = {"G^D": bench.study.pretraining["G^D"]}
    return replace(bench, study=replace(bench.study, pretraining=arms, budgets=(1,), repetitions=1))


def test_arrays_behind_the_pretrainings_that_are_not_done(bench):
    groups = dict(_groups(bench, cells(bench.study)))
    first = groups.pop(None)
    assert {cell.method for cell in first if cell.kind == "finetune"} == {"scratch"}
    assert len([cell for cell in first if cell.kind == "pretrain"]) == 3
    for needs, group in groups.items():
        assert {cell.needs for cell in group} == {needs}
    done = bench.fold_folder(first[0])
    done.mkdir(parents=True)
    (done / "checkpoint_final.pth").touch()
    groups = dict(_groups(bench, cells(bench.study)))
    assert first[0] not in groups[None]
    assert first[0].id not in groups


def test_a_study_through_submitit(small, stage, capsys):
    """The real executor of submitit, which starts processes here instead of Slurm jobs."""
    assert submit(small, cells(small.study), gpus_per_task=0, cpus_per_task=1, cluster="local") == 0
    assert "3 jobs are submitted" in capsys.readouterr().out
    end = time.monotonic() + 60
    while not all(map(small.is_done, cells(small.study))):
        assert time.monotonic() < end
        time.sleep(0.05)
    starts = [call["cell"] for call in stage.calls() if call["event"] == "start"]
    assert sorted(starts) == sorted(cell.id for cell in cells(small.study))


class SlurmExecutor:
    """Notes what Slurm would be asked for."""

    def __init__(self):
        self.asked = []

    def update_parameters(self, **knobs):
        self.asked.append(knobs)


def test_slurm_is_asked_for_dependencies():
    executor = SlurmExecutor()
    _after(executor, None, "slurm")
    _after(executor, type("Job", (), {"job_id": "12_3"}), "slurm")
    assert executor.asked == [
        {"slurm_additional_parameters": {}},
        {
            "slurm_additional_parameters": {
                "dependency": "afterok:12_3",
                "kill-on-invalid-dep": "yes",
            }
        },
    ]
    _limit(executor, 4, "gpu", 1.5, 16, 1, 6)
    asked = executor.asked[-1]
    assert (asked["timeout_min"], asked["mem_gb"], asked["gpus_per_node"]) == (90, 16, 1)
    assert (asked["slurm_partition"], asked["slurm_array_parallelism"]) == ("gpu", 4)


def test_slurm_understands_what_it_is_asked_for(small, tmp_path):
    """submitit's own check of names, and the batch file that it would write."""
    from submitit.slurm.slurm import _make_sbatch_string

    executor = submitit.AutoExecutor(tmp_path, cluster="debug")
    _limit(executor, 4, "gpu", 1.5, 16, 1, 6)
    dependency = {"dependency": "afterok:1", "kill-on-invalid-dep": "yes"}
    text = _make_sbatch_string("train", tmp_path, additional_parameters=dependency)
    assert "#SBATCH --dependency=afterok:1" in text
    assert "#SBATCH --kill-on-invalid-dep=yes" in text


def test_a_job_retries_once_then_fails_with_the_log(small, stage):
    cell = cells(small.study)[1]
    stage.direct(fail={cell.id: 1})
    assert CellJob(small, cell, _slot(0, 1))() == cell.id
    other = replace(small, folder=small.folder / "other")
    stage.direct(fail={cell.id: 9})
    with pytest.raises(RuntimeError, match=r"failed 2 times(.|\n)*something went wrong"):
        CellJob(other, cell, _slot(0, 1))()


def test_a_job_refuses_what_has_no_weights_yet(small, stage):
    with pytest.raises(RuntimeError, match="needs pretrain-nnSSLContrastiveTrainer-s0-f0"):
        CellJob(small, cells(small.study)[-1], _slot(0, 1))()


def test_when_the_time_is_over_the_training_saves_and_goes_on_later(small, stage):
    """As submitit does it: a signal, whose handler asks the job and then leaves the process."""
    stage.direct(seconds=0.3)
    cell = cells(small.study)[1]
    job = CellJob(small, cell, _slot(0, 1))
    latest = small.fold_folder(cell) / "checkpoint_latest.pth"
    again = []

    def over(*_):
        again.append(job.checkpoint())
        sys.exit(-1)

    def send():
        while not latest.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, over)
    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(SystemExit):
        job()
    signal.signal(signal.SIGUSR1, before)
    assert [call["event"] for call in stage.calls()] == ["start", "stopped"]
    assert latest.exists()
    assert again[0].function() == cell.id
    assert [call["resumed"] for call in stage.starts(cell.id)] == [False, True]


def test_without_submitit_the_error_says_what_to_do(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install submitit"):
        submit(small, cells(small.study))
