"""The step benchmark: what is timed, in which order, and what is left behind."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import sys
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.estimate.dry_run import (
    DryRun,
    build_trainer,
    dry_folders,
    find_trainer_class,
    open_loaders,
)
from nnssl.estimate.steps import RESET, MemoryMeter, Step
from nnssl.training.factory import trainer_class

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark_step.py"
sys.path.insert(0, str(SCRIPT.parent))  # as Python does for a script

from benchmark.bare import BareNetwork, count_voxels, find_input  # noqa: E402
from benchmark.phases import PHASES, time_phases  # noqa: E402
from benchmark.rows import (  # noqa: E402
    Setting,
    compare,
    find_shares,
    list_over_budget,
    list_settings,
)

CPU = torch.device("cpu")
JOB = DryRun("999", "2d")
SHORT = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 3, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 1}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8}
"""
NAME = "nnSSLShortBenchmarkTrainer"


@pytest.fixture(autouse=True)
def _short(tiny_dataset, trainer_yaml):
    trainer_yaml(NAME, SHORT)


def everything_in(*folders: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for top in folders for f in top.rglob("*") if f.is_file()}


def test_stock_and_trainers_alternate_and_leave_nothing(tiny_dataset):
    """Blocks in turn; the first row is stock; shares and ratio follow from the timed steps."""
    folders = (tiny_dataset.preprocessed, tiny_dataset.results.parent, tiny_dataset.raw)
    before, variables = everything_in(*folders), dict(os.environ)
    names = [NAME, "nnSSLScratchTrainer"]
    rows, subjects = compare(names, JOB, Setting(0, False, False), rounds=2, steps=2, bare=True)
    assert everything_in(*folders) == before
    assert dict(os.environ) == variables
    assert [row.trainer for row in rows] == ["nnUNetTrainer", *names]
    began = sorted((s.began, row.trainer) for row, one in zip(rows, subjects, strict=True)
                   for s in one.steps)  # fmt: skip
    blocks = [(name, len(list(group))) for name, group in groupby(name for _, name in began)]
    assert blocks == [(row.trainer, 2) for _ in range(2) for row in rows]
    for row in rows:
        assert 0 < sum(row.shares.values()) <= 1
        assert min(row.shares[p] for p in ("data", "forward", "backward", "optimiser")) > 0
        assert (row.shares["views"] > 0) == (row.trainer == NAME)
        assert row.bare is not None
        assert 0 < row.bare < row.step
        assert row.per_million == pytest.approx(row.step / row.voxels * 1e6)
        assert row.relative == pytest.approx(row.per_million / rows[0].per_million)
    assert rows[0].voxels == 32 * 32 * 4
    assert rows[1].voxels == 16 * 16 * 4 * 2  # 2 volumes x 2 parts x 2 views
    assert [line.split()[0] for line in list_over_budget(rows, 1e-4)] == names
    assert list_over_budget(rows, 1e4) == []


def test_workers_really_deliver(tiny_dataset):
    """Background workers; each batch of theirs is waited for or was made ahead."""
    rows, subjects = compare([NAME], JOB, Setting(1, False, False), rounds=1, steps=2)
    assert {row.workers for row in rows} == {1}
    assert all(len(one.steps) == 2 and one.workers == 1 for one in subjects)
    assert torch.multiprocessing.active_children() == []


def test_step_and_bare_network_compute_in_the_precision_of_the_trainer(trainer_yaml):
    """On the CPU too, where only pre-trainers ask for another one than float32."""
    half, kinds = "nnSSLHalfBenchmarkTrainer", []
    trainer_yaml(half, f"extends: {NAME}\ntraining: {{precision: bfloat16}}")
    (setting,) = list_settings(CPU, [0], [False], [False])
    rows, _ = compare([half], JOB, setting, rounds=1, steps=1, bare=True)
    assert [row.precision for row in rows] == ["float32", "bfloat16"]
    with dry_folders(JOB):
        trainer = build_trainer(half, JOB)
        trainer.objective.projector.register_forward_hook(lambda *a: kinds.append(a[-1].dtype))
        with time_phases(trainer, setting.amp):
            trainer.train_step(trainer.batch_maker(0))
    assert kinds == [torch.bfloat16]


@pytest.mark.parametrize(("budget", "status"), [("0.0001", 1), ("10000", 0)])
def test_budget_decides_the_exit_status(tiny_dataset, monkeypatch, capsys, budget, status):
    specification = importlib.util.spec_from_file_location("benchmark_step", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    file = tiny_dataset.configs / "result.json"
    command = f"x 999 2d -tr {NAME} -device cpu --rounds 1 --steps 1 --workers 0 --json {file}"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--budget", budget])
    assert script.main() == status
    printed = capsys.readouterr()
    assert (NAME in printed.err) == bool(status)
    assert NAME in printed.out
    content = json.loads(file.read_text())
    assert [row["trainer"] for row in content["rows"]] == ["nnUNetTrainer", NAME]
    assert torch.__version__.startswith(content["machine"]["versions"]["torch"])


def test_shares_are_of_the_whole_time():
    """One second of waiting beside three of a step, a third of whose processor time is forward."""
    phases = {**dict.fromkeys(PHASES, 0.0), "forward": 0.5, "backward": 1.0}
    steps = [Step(0.0, 1.0, 3.0, 1.5, phases)] * 3
    found = find_shares(steps, on_cpu=True)
    assert found["data"] == pytest.approx(0.25)
    assert found["forward"] == pytest.approx(0.75 / 3)
    assert found["backward"] == pytest.approx(0.75 * 2 / 3)
    assert sum(found.values()) == pytest.approx(1)


def test_hooks_leave_no_trace_and_change_no_weight(tiny_dataset):
    """A timed step does what an untimed one does."""
    backward, ends = torch.Tensor.backward, []
    for timed in (True, False):
        with dry_folders(JOB):
            trainer = build_trainer(NAME, JOB)
            batch = trainer.batch_maker(0)
            if timed:
                with time_phases(trainer) as take:
                    trainer.train_step(batch)
                    assert min(take().values()) > 0
            else:
                trainer.train_step(batch)
            ends.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
            assert "prepare" not in vars(trainer)
            if timed:
                trainer.train_step(batch)
                assert set(take().values()) == {0.0}
    assert torch.Tensor.backward is backward
    assert torch.equal(*ends)


def test_mixed_precision_is_switched_off_inside_the_step(tiny_dataset):
    """Under the trainer's autocast the network computes in float32; outside nothing changes."""
    with dry_folders(JOB):
        trainer = build_trainer("nnUNetTrainer", JOB)
        data = torch.zeros(1, 1, 32, 32)
        kinds = []
        for amp in (True, False):
            with time_phases(trainer, amp), torch.autocast("cpu", torch.bfloat16):
                kinds.append(trainer.network(data)[0].dtype)
        assert kinds == [torch.bfloat16, torch.float32]
        assert not torch.is_autocast_enabled("cpu")


def test_caches_are_made_in_the_copy_only(tiny_dataset):
    own = tiny_dataset.preprocessed / "nnssl" / "nnUNetPlans_2d"
    with dry_folders(JOB) as folder, open_loaders(build_trainer(NAME, JOB), 0) as (train, _):
        next(train)
        made = list(folder.rglob("nnssl/nnUNetPlans_2d/occupancy/*.npz"))
    assert made
    assert not own.exists()
    assert not folder.exists()


def test_every_combination_on_cuda_and_workers_alone_on_the_cpu():
    both = [True, False]
    assert len(list_settings(torch.device("cuda"), [1, 2], both, both)) == 8
    assert list_settings(CPU, [1, 2], both, both) == [Setting(n, True, False) for n in (1, 2)]


def be_terminated(folders):
    with dry_folders(JOB) as folder:
        folders.append(folder)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # never slept through


def test_a_termination_leaves_nothing(tiny_dataset):
    before, folders = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit, match="143"):
        be_terminated(folders)
    assert not folders[0].exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not os.access(RESET, os.W_OK), reason="Linux tells the peak, if it may")
def test_peak_memory_counts_what_was_freed_again():
    meter = MemoryMeter(CPU)
    np.ones(64 * 2**20, np.uint8)[::4096].sum()
    assert meter.read_peak() == pytest.approx(64 * 2**20, rel=0.3)


def test_voxels_of_a_fine_tuner_are_the_plans(tiny_dataset):
    """Its `budget` is one of labels."""
    with dry_folders(JOB):
        assert count_voxels(build_trainer("nnSSLScratchTrainer", JOB)) == 32 * 32 * 4


def test_unknown_trainer_is_named(tiny_dataset):
    with pytest.raises(ValueError, match="nnUNetTrainerNobodyWrote"):
        find_trainer_class("nnUNetTrainerNobodyWrote")


@pytest.mark.parametrize(
    ("name", "decoded"), [(NAME, 0), ("nnSSLJointTrainer", 0.5), ("nnSSLScratchTrainer", 1)]
)
def test_the_bare_network_is_what_the_step_computes(tiny_dataset, name, decoded):
    """The same parts on as many voxels; no weight is changed and no gradient left."""
    trainer, rows = tiny_dataset.trainer(trainer_class(name)), []
    trainer.initialize()
    bare = BareNetwork(trainer, None)
    for stage in (bare.network.encoder.stages[0], bare.network.decoder.stages[-1]):
        stage.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    before = {key: value.clone() for key, value in bare.network.state_dict().items()}
    bare.run_block(2)
    size = find_input(trainer)
    assert rows == 3 * [n for n in (size[0], round(decoded * size[0])) if n]
    assert len(bare.taken) == 2
    assert all(value.equal(before[key]) for key, value in bare.network.state_dict().items())
    assert all(p.grad is None for p in bare.network.parameters())
    assert size[0] * math.prod(size[2:]) * bare.share == count_voxels(trainer)
