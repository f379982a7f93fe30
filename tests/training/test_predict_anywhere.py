"""Fine-tuned models in a second environment without nnssl: every stock command, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.training.factory import trainer_class

NAME = "nnSSLTinyTrainer"
YAML = """
extends: nnSSLFinetuneTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1}
weights: {source: none}
"""
MODELS = (("2d", 0), ("2d", 1), ("3d_fullres", 0), ("3d_fullres", 1))


@pytest.fixture
def models(tiny_dataset: Any, trainer_yaml: Any) -> Any:
    """Two configurations on two folds, with the probabilities that ensembles need."""
    trainer_yaml(NAME, YAML)
    for configuration, fold in MODELS:
        trainer = tiny_dataset.trainer(trainer_class(NAME), configuration, fold)
        trainer.run_training()
        trainer.perform_actual_validation(save_probabilities=True)
        # drawing it is muted here; nnU-Net packs it into the archive of a model
        (Path(trainer.output_folder) / "progress.png").touch()
    return tiny_dataset


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Python of a virtual environment that has everything but nnssl."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    inside = next(folder.glob("lib/python*/site-packages"))
    for path in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        for each in Path(path).iterdir():
            own = "nnssl" in each.name or each.suffix == ".pth"
            if not own and not (inside / each.name).exists():
                (inside / each.name).symlink_to(each)
    return folder / "bin" / "python"


def run(python: Path | str, command: str, *arguments: Any, **variables: str) -> str:
    """A stock command by its name."""
    (entry,) = entry_points(group="console_scripts", name=command)
    module, function = entry.value.split(":")
    code = f"from {module} import {function}; {function}()"
    environment = {**os.environ, "nnUNet_extTrainer": "", **variables}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(python), "-c", code, *map(str, arguments)],
        env=environment, capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def voxels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.nii.gz"))
    assert files
    return {file.name: sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_stock_commands_serve_a_model_where_nnssl_is_not_installed(models, bare, tmp_path):
    missing = [str(bare), "-c", "import nnunetv2, nnssl"]
    told = subprocess.run(missing, capture_output=True, text=True, cwd="/", check=False, env={})
    assert "No module named 'nnssl'" in told.stderr
    images = tmp_path / "images"
    images.mkdir()
    for case in ("p0_f0_0000", "p1_f1_0000"):
        name = f"{case}.nii.gz"
        (images / name).symlink_to(models.raw / "imagesTr" / name)
    single = ("-npp", 1, "-nps", 1, "-device", "cpu")
    place = ("-d", 999, "-tr", NAME, "-p", "nnUNetPlans")
    found = {}
    for configuration in ("2d", "3d_fullres"):
        for name, python in (("with", sys.executable), ("without", bare)):
            output = tmp_path / f"{configuration}_{name}"
            model = ("-c", configuration, "-f", 0, 1, "--save_probabilities")
            run(python, "nnUNetv2_predict", "-i", images, "-o", output, *place, *model, *single)
            found[configuration, name] = voxels(output)
        assert same(found[configuration, "with"], found[configuration, "without"])

    both = [tmp_path / f"{configuration}_without" for configuration in ("2d", "3d_fullres")]
    run(bare, "nnUNetv2_ensemble", "-i", *both, "-o", tmp_path / "ensemble", "-np", 1)
    assert voxels(tmp_path / "ensemble").keys() == found["2d", "with"].keys()

    best = ("999", "-c", "2d", "3d_fullres", "-tr", NAME, "-p", "nnUNetPlans", "-f", 0, 1)
    text = run(bare, "nnUNetv2_find_best_configuration", *best, "-np", 1)
    assert NAME in text + (models.results / "inference_instructions.txt").read_text()

    zipped, other = tmp_path / "model.zip", tmp_path / "other_results"
    other.mkdir()
    chosen = ("-c", "2d", "-f", 0, 1)
    run(bare, "nnUNetv2_export_model_to_zip", "-o", zipped, *place, *chosen)
    variables = {"nnUNet_results": str(other)}
    run(bare, "nnUNetv2_install_pretrained_model_from_zip", zipped, **variables)
    output = tmp_path / "from_zip"
    run(bare, "nnUNetv2_predict", "-i", images, "-o", output, *place, *chosen, *single, **variables)
    assert same(voxels(output), found["2d", "with"])
