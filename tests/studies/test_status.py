"""The grid with the state of every cell."""

from __future__ import annotations

from dataclasses import replace

from nnssl.common import locks
from nnssl.common.files import write_json
from nnssl.studies.run.devices import make_slots
from nnssl.studies.run.folder import RECORD
from nnssl.studies.run.local import LocalRunner
from nnssl.studies.run.spec import PretrainingArm
from nnssl.studies.run.status import describe_state, read_status


def test_a_fresh_study_waits(study_folder):
    arms = {
        **study_folder.study.pretraining,
        "X": PretrainingArm("nnSSLNoneTrainer", waits="trainer"),
    }
    replace(study_folder, study=replace(study_folder.study, pretraining=arms)).write()
    found = read_status(study_folder.path)
    assert found.counts == {"waiting": 15}
    waiting = {"r0": "waiting", "r1": "waiting"}
    scratch = {"method": "scratch", "schedule": "standard", "patients": "1", "fold": "0", **waiting}
    assert found.finetuning[0] == scratch
    assert found.lines == [
        "left out: X waits for the trainer nnSSLNoneTrainer, which does not exist yet"
    ]


def test_done_failed_and_blocked_are_told(study_folder, stage):
    stage.direct(fail={"pretrain-nnSSLContrastiveTrainer-s0-f0": 2, "scratch-p2-r1-f0-standard": 2})
    study_folder.write()
    LocalRunner(study_folder, study_folder.cells, make_slots(["cpu"], 3)).run()
    found = read_status(study_folder.path)
    assert found.counts == {"FAILED": 2, "done": 11, "blocked": 2}
    rows = {(row["method"], row["patients"]): (row["r0"], row["r1"]) for row in found.finetuning}
    cell = next(c for c in study_folder.cells if c.id == "gd-p1-r1-f0-standard")
    dice = study_folder.dice(cell)
    assert rows["G^D", "1"] == ("blocked", f"{dice:.3f}")
    assert rows["scratch", "2"][1] == "FAILED"
    first = ("G^D", "nnSSLContrastiveTrainer", "0", "0", "FAILED")
    assert tuple(found.pretraining[0].values()) == first
    assert "    something went wrong" in found.lines
    assert any("scratch-p2-r1-f0-standard, see /" in line for line in found.lines)


def test_running_and_stopped_cells_show_their_epoch(study_folder):
    cell = next(c for c in study_folder.cells if c.kind == "finetune")
    runs = study_folder.fold_folder(cell)
    runs.mkdir(parents=True)
    assert describe_state(study_folder, cell) == "waiting"
    (runs / "training_log_1.txt").write_text(
        "2026: Epoch 0 \n2026: Epoch time: 3 s\n2026: Epoch 1 \n"
    )
    lock = locks.acquire(study_folder.cell_folder(cell))
    assert describe_state(study_folder, cell) == "running epoch 1/3"
    lock.release()
    with (runs / "training_log_1.txt").open("a") as log:
        log.write("2026: Epoch 2 of 3: 38 s (3% of it waiting for data), 38 s left \n")
    (runs / "checkpoint_latest.pth").touch()
    assert describe_state(study_folder, cell) == "stopped epoch 2/3"
    (runs / "checkpoint_final.pth").touch()
    assert describe_state(study_folder, cell) == "stopped validation"
    (runs / "validation").mkdir()
    (runs / "validation" / "summary.json").write_text('{"foreground_mean": {')
    assert describe_state(study_folder, cell) == "stopped validation", "killed while it was written"
    attempt = {"returncode": -9, "done": False, "interrupted": False, "log": "x", "seconds": 1}
    write_json(study_folder.cell_folder(cell) / RECORD, {"attempts": [attempt]})
    assert describe_state(study_folder, cell) == "FAILED", "without its validation it is not done"


def test_nothing_can_run_without_the_dataset(study_folder, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    replace(study_folder, study=replace(study_folder.study, dataset=777)).write()
    assert read_status(study_folder.path).counts == {"waiting": 15}
