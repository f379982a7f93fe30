"""All roads run where processes are not forked, SIGUSR1 is missing and files have no kernel locks.

As on macOS and Windows, as far as that can be emulated here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.nnunet import registration
from tests.tiny import write_volume

EMULATION = """
import multiprocessing, os, signal, sys
multiprocessing.set_start_method("{method}", force=True)
del signal.SIGUSR1, os.waitid, os.pwrite
sys.modules["fcntl"] = None
"""
SHORT = "num_epochs=2 num_iterations_per_epoch=2 num_val_iterations_per_epoch=1"


@pytest.mark.slow
@pytest.mark.skipif(not registration.supports_external(), reason="needs nnUNet_extTrainer")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_all_roads_run(tiny_files: Path, tmp_path: Path, method: str) -> None:
    for name in ("raw", "preprocessed"):
        shutil.copytree(tiny_files / name, tmp_path / name)
    (tmp_path / "results").mkdir()
    (tmp_path / "sitecustomize.py").write_text(EMULATION.format(method=method))
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("nnssl_", "nnUNet_"))},
        **{f"nnUNet_{n}": str(tmp_path / n) for n in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str(registration.EXTERNAL_FOLDER),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "1",
        "nnssl_overrides": SHORT,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])]),
    }

    def run(command: str, *options: str) -> None:
        program = [sys.executable, str(Path(sys.executable).with_name(command)), *options]
        done = subprocess.run(program, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    run("nnssl_phantom", str(tmp_path / "native"), "--patients", "3")
    run("nnssl_convert", "ACDC", str(tmp_path / "native"), "-d", "27", "--workers", "2")
    for number in range(3):
        (tmp_path / "more" / "imagesTr").mkdir(parents=True, exist_ok=True)
        (tmp_path / "more" / "labelsTr").mkdir(exist_ok=True)
        write_volume(tmp_path / "more", f"more{number}_f0", 100 + number)
    more = ["-i", str(tmp_path / "more" / "imagesTr"), "-np", "2"]
    run("nnssl_preprocess_unlabelled", "-d", "999", "-c", "2d", *more)
    run("nnssl_cluster", "-d", "999", "-c", "2d", "-f", "0", "-k", "4", "--workers", "2")
    for trainer in ("nnSSLContrastiveTrainer", "nnSSLFinetuneTrainer", "nnSSLScratchTrainer"):
        run("nnUNetv2_train", "999", "2d", "0", "-tr", trainer, "-device", "cpu")
    (tmp_path / "study.yaml").write_text(STUDY)
    study = ["run", str(tmp_path / "study.yaml"), "-o", str(tmp_path / "study")]
    del variables["nnUNet_results"], variables["nnssl_overrides"]
    run("nnssl_study", *study, "--devices", "cpu")


STUDY = """
kind: study
about: {summary: short}
study: {dataset: 999, budgets: [1], repetitions: 1}
pretraining:
  G^R:
    trainer: nnSSLContrastiveGRTrainer
    overrides: {num_epochs: 2, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1}
schedules:
  standard:
    overrides: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1}
"""
