"""A tiny synthetic dataset in nnU-Net's own layout, preprocessed by nnU-Net's own preprocessor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

NAME = "Dataset999_Tiny"
PLANS = "nnUNetPlans"
PATIENTS, FRAMES = 5, 2
SHAPE, SPACING = (8, 40, 40), (5.0, 1.5, 1.5)
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "shell": 1, "core": 2},
    "numTraining": PATIENTS * FRAMES,
    "file_ending": ".nii.gz",
}


@dataclass(frozen=True)
class TinyDataset:
    """Five patients with two frames each; fold f validates on patient f (folds 0 and 1).

    Attributes:
        raw: folder of the raw dataset.
        preprocessed: folder of the preprocessed dataset.
        results: empty `nnUNet_results/<dataset>` of this test.
        plans: content of `nnUNetPlans.json`, configurations `2d` and `3d_fullres`.
        dataset_json: content of `dataset.json`.
        configs: folder for a test's own YAML trainers, searched first.
    """

    raw: Path
    preprocessed: Path
    results: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configs: Path

    def trainer(self, kind: type, configuration: str = "2d", fold: int | str = 0, **plans: Any):
        """A trainer of this dataset on the CPU, without the slow picture of nnU-Net's progress."""
        import torch

        settings = {**deepcopy(self.plans), **plans}
        trainer = kind(settings, configuration, fold, dict(self.dataset_json), torch.device("cpu"))
        trainer.logger.plot_progress_png = lambda folder: None
        return trainer


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `raw` and `preprocessed`, made once."""
    root = tmp_path_factory.mktemp("tiny")
    cases = {f"p{p}_f{f}": f"p{p}" for p in range(PATIENTS) for f in range(FRAMES)}
    raw, preprocessed = root / "raw" / NAME, root / "preprocessed" / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    for number, case in enumerate(cases):
        write_volume(raw, case, number)
    write_descriptions(raw, preprocessed, cases)
    for configuration in ("2d", "3d_fullres"):
        preprocess(raw, preprocessed, configuration, list(cases))
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")
    return root


@pytest.fixture
def tiny_dataset(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    """A private copy of the dataset, with the environment of nnU-Net and nnSSL pointing to it."""
    for name in ("raw", "preprocessed"):
        shutil.copytree(tiny_files / name, tmp_path / name)
        point_nnunet_to(f"nnUNet_{name}", tmp_path / name, monkeypatch)
    (tmp_path / "results").mkdir()
    point_nnunet_to("nnUNet_results", tmp_path / "results", monkeypatch)
    (tmp_path / "configs").mkdir()
    monkeypatch.setenv("nnssl_configs", str(tmp_path / "configs"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "0")
    for name in ("nnssl_overrides", "nnssl_pretrained_weights"):
        monkeypatch.delenv(name, raising=False)
    return TinyDataset(
        tmp_path / "raw" / NAME,
        tmp_path / "preprocessed" / NAME,
        tmp_path / "results" / NAME,
        json.loads((tmp_path / "preprocessed" / NAME / f"{PLANS}.json").read_text()),
        deepcopy(DATASET_JSON),
        tmp_path / "configs",
    )


@pytest.fixture
def trainer_yaml(tiny_dataset: TinyDataset) -> Callable[[str, str], str]:
    """`trainer_yaml(name, text)` writes a trainer of this test and returns its name."""

    def write(name: str, text: str) -> str:
        (tiny_dataset.configs / f"{name}.yaml").write_text(text)
        return name

    return write


def stop_after(trainer: Any, steps: int) -> None:
    """The trainer gets SIGTERM in the step of this number, counted from 1."""
    step = trainer.train_step

    def counted(batch: Any) -> Any:
        if trainer.step == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    trainer.train_step = counted


def point_nnunet_to(variable: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the variable; nnU-Net before 2.8 has read it at import, in every module that uses it."""
    monkeypatch.setenv(variable, str(folder))
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as _  # noqa: F401

    for name, module in list(sys.modules.items()):
        known = name.startswith("nnunetv2") and hasattr(module, variable)
        if known and isinstance(getattr(module, variable), (str, type(None))):
            monkeypatch.setattr(module, variable, str(folder))


def write_volume(raw: Path, case: str, number: int) -> None:
    """A noisy ball with a core; size and place differ by case."""
    rng = np.random.default_rng(number)
    centre = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3) * (0.5, 4, 4)
    distance = np.sqrt(
        sum(
            ((axis - c) / r) ** 2
            for axis, c, r in zip(np.indices(SHAPE), centre, (4, 14, 14), strict=True)
        )
    )
    label = (distance < 0.9).astype(np.uint8) + (distance < 0.5).astype(np.uint8)
    image = 100 * label + rng.normal(0, 20, SHAPE) + 200
    for array, path in (
        (image.astype(np.float32), raw / "imagesTr" / f"{case}_0000.nii.gz"),
        (label, raw / "labelsTr" / f"{case}.nii.gz"),
    ):
        volume = SimpleITK.GetImageFromArray(array)
        volume.SetSpacing(SPACING[::-1])
        SimpleITK.WriteImage(volume, str(path))


def write_descriptions(raw: Path, preprocessed: Path, cases: dict[str, str]) -> None:
    splits = [
        {
            "train": [case for case in cases if cases[case] != f"p{fold}"],
            "val": [case for case in cases if cases[case] == f"p{fold}"],
        }
        for fold in range(2)
    ]
    origin = {case: {"patient": cases[case], "dataset": "Tiny", "part": "Tr"} for case in cases}
    for path, content in (
        (raw / "dataset.json", DATASET_JSON),
        (raw / "splits_final.json", splits),
        (raw / "cases.json", {"cases": origin, "version": 1}),
        (preprocessed / "dataset.json", DATASET_JSON),
        (preprocessed / "splits_final.json", splits),
        (preprocessed / "nnssl" / "cases.json", {"cases": origin, "version": 1}),
        (preprocessed / f"{PLANS}.json", tiny_plans()),
        (preprocessed / "dataset_fingerprint.json", {}),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def preprocess(raw: Path, preprocessed: Path, configuration: str, cases: list[str]) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(tiny_plans())
    manager = plans.get_configuration(configuration)
    folder = preprocessed / manager.data_identifier
    folder.mkdir()
    for case in cases:
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case),
            [str(raw / "imagesTr" / f"{case}_0000.nii.gz")],
            str(raw / "labelsTr" / f"{case}.nii.gz"),
            plans,
            manager,
            DATASET_JSON,
        )


def tiny_plans() -> dict[str, Any]:
    statistics = {"max": 600.0, "mean": 300.0, "median": 300.0, "min": 100.0}
    statistics |= {"percentile_00_5": 150.0, "percentile_99_5": 450.0, "std": 50.0}
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": list(SPACING),
        "original_median_shape_after_transp": list(SHAPE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "configurations": {
            "2d": tiny_configuration("2d", [32, 32]),
            "3d_fullres": tiny_configuration("3d_fullres", [8, 32, 32]),
        },
    }


def tiny_configuration(name: str, patch: list[int]) -> dict[str, Any]:
    dimension = len(patch)
    resampling = {"order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"{PLANS}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 4 if dimension == 2 else 2,
        "patch_size": patch,
        "median_image_size_in_voxels": list(SHAPE)[-dimension:],
        "spacing": list(SPACING)[-dimension:],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": tiny_architecture(dimension),
        "batch_dice": dimension == 2,
    }


def tiny_architecture(dimension: int) -> dict[str, Any]:
    from nnssl.nnunet.plans import PLAIN, make_architecture

    strides = [stride[-dimension:] for stride in ([1, 1, 1], [1, 2, 2], [2, 2, 2])]
    return make_architecture(PLAIN, [4, 6, 8], strides, [1, 1, 1], [1, 1])
