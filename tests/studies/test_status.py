"""The grid with the state of every cell."""

from __future__ import annotations

from dataclasses import replace

from nnssl.common import locks
from nnssl.common.files import write_json
from nnssl.studies.run import places
from nnssl.studies.run.attempts import RECORD
from nnssl.studies.run.folder import write_study
from nnssl.studies.run.grid import cells
from nnssl.studies.run.local import LocalRunner
from nnssl.studies.run.slots import slots
from nnssl.studies.run.spec import PretrainingArm
from nnssl.studies.run.status import state, status


def test_a_fresh_study_waits(bench):
    arms = {**bench.study.pretraining, "X": PretrainingArm("nnSSLNoneTrainer", waits="trainer")}
    write_study(bench.folder, replace(bench.study, pretraining=arms))
    found = status(bench.folder)
    assert found.counts == {"waiting": 15}
    assert found.finetuning.header == ("method", "schedule", "patients", "fold", "r0", "r1")
    assert found.finetuning.rows[0] == ("scratch", "standard", "1", "0", "waiting", "waiting")
    assert found.lines == [
        "left out: X waits for the trainer nnSSLNoneTrainer, which does not exist yet"
    ]


def test_done_failed_and_blocked_are_told(bench, stage):
    stage.direct(fail={"pretrain-nnSSLContrastiveTrainer-s0-f0": 2, "scratch-p2-r1-f0-standard": 2})
    write_study(bench.folder, bench.study)
    LocalRunner(bench, cells(bench.study), slots(["cpu"], 3)).run()
    found = status(bench.folder)
    assert found.counts == {"FAILED": 2, "done": 11, "blocked": 2}
    rows = {(row[0], row[2]): row[4:] for row in found.finetuning.rows}
    cell = next(c for c in cells(bench.study) if c.id == "gd-p1-r1-f0-standard")
    dice = places.dice(bench.fold_folder(cell))
    assert rows["G^D", "1"] == ("blocked", f"{dice:.3f}")
    assert rows["scratch", "2"][1] == "FAILED"
    assert found.pretraining.rows[0] == ("G^D", "nnSSLContrastiveTrainer", "0", "0", "FAILED")
    assert "    something went wrong" in found.lines
    assert any("scratch-p2-r1-f0-standard, see /" in line for line in found.lines)


def test_running_and_stopped_cells_show_their_epoch(bench):
    cell = next(c for c in cells(bench.study) if c.kind == "finetune")
    runs = bench.fold_folder(cell)
    runs.mkdir(parents=True)
    assert state(bench, cell) == "waiting"
    (runs / "training_log_1.txt").write_text(
        "2026: Epoch 0 \n2026: Epoch time: 3 s\n2026: Epoch 1 \n"
    )
    lock = locks.acquire(cell.folder(bench.folder))
    assert state(bench, cell) == "running epoch 1/3"
    lock.release()
    (runs / "checkpoint_latest.pth").touch()
    assert state(bench, cell) == "stopped epoch 1/3"
    (runs / "checkpoint_final.pth").touch()
    assert state(bench, cell) == "stopped validation"
    attempt = {"returncode": -9, "done": False, "interrupted": False, "log": "x", "seconds": 1}
    write_json(cell.folder(bench.folder) / RECORD, {"attempts": [attempt]})
    assert state(bench, cell) == "FAILED", "without its validation it is not done"


def test_nothing_can_run_without_the_dataset(bench, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    study = replace(bench.study, dataset=777)
    write_study(bench.folder, study)
    assert status(bench.folder).counts == {"waiting": 15}
