"""Jobs through submitit, on this machine: dependencies, retries, saving when the time is over."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest

from nnssl.studies.run.devices import Slot
from nnssl.studies.run.slurm import CellJob, JobLimits, _group_by_need, _start_after, submit

submitit = pytest.importorskip("submitit")
CPU = Slot(arguments=("-device", "cpu"))
ON_CPU = JobLimits(gpus_per_task=0, cpus_per_task=1)
LIMITS = JobLimits("gpu", 1.5, 16, 1, 6, processes=4)


@pytest.fixture
def small(study_folder, monkeypatch):
    monkeypatch.setattr("nnssl.studies.run.slurm.SECONDS_BETWEEN_LOOKS", 0.02)
    arms = {"G^D": study_folder.study.pretraining["G^D"]}
    study = replace(study_folder.study, pretraining=arms, budgets=(1,), repetitions=1)
    return replace(study_folder, study=study)


def test_arrays_behind_the_pretrainings_that_are_not_done(study_folder):
    groups = dict(_group_by_need(study_folder, study_folder.cells))
    first = groups.pop(None)
    assert {cell.method for cell in first if cell.kind == "finetune"} == {"scratch"}
    assert len([cell for cell in first if cell.kind == "pretrain"]) == 3
    for needs, group in groups.items():
        assert {cell.needs for cell in group} == {needs}
    done = study_folder.fold_folder(first[0])
    done.mkdir(parents=True)
    (done / "checkpoint_final.pth").touch()
    groups = dict(_group_by_need(study_folder, study_folder.cells))
    assert first[0] not in groups[None]
    assert first[0].id not in groups


def test_a_study_through_submitit(small, stage, capsys):
    """The real executor of submitit, which starts processes here instead of Slurm jobs."""
    assert submit(small, small.cells, ON_CPU, cluster="local") == 0
    assert "3 jobs are submitted" in capsys.readouterr().out
    end = time.monotonic() + 60
    while not all(map(small.is_done, small.cells)):
        assert time.monotonic() < end
        time.sleep(0.05)
    starts = [call["cell"] for call in stage.calls() if call["event"] == "start"]
    assert sorted(starts) == sorted(cell.id for cell in small.cells)


class SlurmExecutor:
    """Notes what Slurm would be asked for."""

    def __init__(self):
        self.asked = []

    def update_parameters(self, **knobs):
        self.asked.append(knobs)


def test_slurm_is_asked_for_dependencies():
    executor = SlurmExecutor()
    _start_after(executor, None, "slurm")
    _start_after(executor, type("Job", (), {"job_id": "12_3"}), "slurm")
    assert executor.asked == [
        {"slurm_additional_parameters": {}},
        {
            "slurm_additional_parameters": {
                "dependency": "afterok:12_3",
                "kill-on-invalid-dep": "yes",
            }
        },
    ]
    asked = LIMITS.parameters()
    assert (asked["timeout_min"], asked["mem_gb"], asked["gpus_per_node"]) == (90, 16, 1)
    assert (asked["slurm_partition"], asked["slurm_array_parallelism"]) == ("gpu", 4)


def test_slurm_understands_what_it_is_asked_for(small, tmp_path):
    """submitit's own check of names, and the batch file that it would write."""
    from submitit.slurm.slurm import _make_sbatch_string

    executor = submitit.AutoExecutor(tmp_path, cluster="debug")
    executor.update_parameters(**LIMITS.parameters())
    dependency = {"dependency": "afterok:1", "kill-on-invalid-dep": "yes"}
    text = _make_sbatch_string("train", tmp_path, additional_parameters=dependency)
    assert "#SBATCH --dependency=afterok:1" in text
    assert "#SBATCH --kill-on-invalid-dep=yes" in text


def test_a_job_retries_once_then_fails_with_the_log(small, stage):
    cell = small.cells[1]
    stage.direct(fail={cell.id: 1})
    assert CellJob(small, cell, CPU)() == cell.id
    other = replace(small, path=small.path / "other")
    stage.direct(fail={cell.id: 9})
    with pytest.raises(RuntimeError, match=r"failed 2 times(.|\n)*something went wrong"):
        CellJob(other, cell, CPU)()


def test_a_job_refuses_what_has_no_weights_yet(small, stage):
    with pytest.raises(RuntimeError, match="needs pretrain-nnSSLContrastiveTrainer-s0-f0"):
        CellJob(small, small.cells[-1], CPU)()


def test_when_the_time_is_over_the_training_saves_and_goes_on_later(small, stage):
    """As submitit does it: a signal, whose handler asks the job and then leaves the process."""
    stage.direct(seconds=0.3)
    cell = small.cells[1]
    job = CellJob(small, cell, CPU)
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
        submit(small, small.cells, LIMITS)
