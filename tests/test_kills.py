"""Commands that are killed at random moments and repeated make what an undisturbed one makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.nnunet import registration
from tests.convert.conftest import Miniature
from tests.tiny import NAME, write_volume

PROGRAM = Path(__file__).with_name("kills.py")
ROADS = ("pretrain", "finetune", "preprocess_unlabelled", "cluster", "cluster_anew")


@pytest.fixture
def begin(tiny_files: Path, tmp_path: Path) -> Path:
    """What the roads start from: the tiny dataset, images without labels, an empty results."""
    begin = tmp_path / "begin"
    for name in ("raw", "preprocessed"):
        shutil.copytree(tiny_files / name, begin / name)
    (begin / "results").mkdir()
    for number in range(6):
        (begin / "more" / "imagesTr").mkdir(parents=True, exist_ok=True)
        (begin / "more" / "labelsTr").mkdir(exist_ok=True)
        write_volume(begin / "more", f"more{number}_f0", 100 + number)
    shutil.rmtree(begin / "more" / "labelsTr")
    return begin


def kill(road: str, root: Path, seed: int, kills: int) -> dict[str, float]:
    own = {
        "PYTHONPATH": str(PROGRAM.parents[1]),
        "nnUNet_extTrainer": str(registration.EXTERNAL_FOLDER),
        "nnUNet_n_proc_DA": "2",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "0",
        "OMP_NUM_THREADS": "1",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnssl_", "nnUNet_"))}
    command = [sys.executable, str(PROGRAM), road, str(root), str(seed), str(kills)]
    run = subprocess.run(command, env={**kept, **own}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_conversion_is_killed(miniature: Path, tmp_path: Path) -> None:
    found = kill("convert", tmp_path, seed=0, kills=8)
    assert found["struck"] == 8
    assert found["outlived"] < 1


@pytest.fixture
def miniature(tmp_path: Path) -> Path:
    """Six training and two test patients in ACDC's layout, each with a cine, as a road's start."""
    source = Miniature(tmp_path / "begin" / "source")
    for number in (*range(1, 7), 101, 102):
        home = source.patient("testing" if number > 100 else "training", number)
        values = np.random.default_rng(3).integers(0, 99, (13, 3, 6, 5)).astype(np.int16)
        image = sitk.GetImageFromArray(values, isVector=False)
        sitk.WriteImage(image, str(home / f"{home.name}_4d.nii.gz"))
    return source.root


@pytest.mark.slow
@pytest.mark.skipif(not registration.supports_external(), reason="needs nnUNet_extTrainer")
@pytest.mark.parametrize("road", ROADS)
def test_killed_twenty_times(road: str, begin: Path) -> None:
    if road == "cluster_anew":
        cluster_once(begin)
    found = kill(road, begin.parent, seed=0, kills=20)
    print(road, found)
    assert found["struck"] == 20
    assert found["outlived"] < 15  # spawned processes first import


def cluster_once(begin: Path) -> None:
    variables = {"nnUNet_preprocessed": str(begin / "preprocessed")}
    options = ["-d", "999", "-c", "2d", "-f", "0", "-k", "4", "--workers", "1"]
    subprocess.run(
        [sys.executable, "-c", "from nnssl.cli.cluster import main; main()", *options],
        env={**os.environ, **variables, "PYTHONPATH": str(PROGRAM.parents[1])},
        check=True,
        capture_output=True,
    )
    assert list((begin / "preprocessed" / NAME / "nnssl").rglob("manifest.json"))
