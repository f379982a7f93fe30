"""Data sets for checks and benchmarks: noise and balls, preprocessed as nnU-Net does.

usage, in the folder scripts: python -m on_gpu.data FOLDER SIZE (one of `SIZES`)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.common.files import write_json
from nnssl.nnunet.plans import PLAIN, RESIDUAL, make_architecture

PATIENTS, FRAMES, PLANS = 5, 2, "nnUNetPlans"
NAMES = {
    "tiny": "Dataset999_Tiny",
    "real": "Dataset998_Real",
    "many": "Dataset997_Many",
    "residual": "Dataset996_Residual",
}
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)  # of nnU-Net's residual encoders
CONFIGURATIONS, SIDES = ("2d", "3d_fullres"), ("train", "val")
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "shell": 1, "core": 2},
    "file_ending": ".nii.gz",
}
# shape of a volume, patch, batch and features: `real` of nnU-Net's default ACDC plan (2D) and of a
# 128^3 plan, `residual` of its plan ResEnc-L, with a smaller patch
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "2d": ((8, 40, 40), (32, 32), 4, (4, 6, 8)),
        "3d_fullres": ((8, 40, 40), (8, 32, 32), 2, (4, 6, 8)),
    },
    "residual": {"3d_fullres": ((80, 80, 80), (64, 64, 64), 2, (32, 64, 128, 256, 320, 320))},
    "many": {"2d": ((6, 32, 32), (24, 24), 4, (4, 6, 8))},
    "real": {
        "2d": ((10, 256, 256), (256, 224), 56, (32, 64, 128, 256, 512, 512)),
        "3d_fullres": ((144, 160, 160), (128, 128, 128), 2, (32, 64, 128, 256, 320, 320)),
    },
}


def list_cases(patients: int = PATIENTS) -> list[str]:
    """Identifiers, patient by patient."""
    return [f"p{patient}_f{frame}" for patient in range(patients) for frame in range(FRAMES)]


def preprocess_tiny(root: Path, processes: int) -> None:
    """Writes the tiny data set below `root/raw` and `root/preprocessed`, and an empty `results`."""
    _describe(root, "tiny")
    jobs = [
        (root, configuration, case) for configuration in CONFIGURATIONS for case in list_cases()
    ]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(_preprocess_case, jobs))


def write_random(root: Path, size: str, threads: int, patients: int = PATIENTS) -> None:
    """Writes cases of noise as if nnU-Net had preprocessed them: within seconds, for timings."""
    _describe(root, size, patients)
    jobs = [(root, size, c, case) for c in SIZES[size] for case in list_cases(patients)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_write_noise, jobs))


def make_plans(size: str) -> dict[str, Any]:
    """Plans as nnU-Net makes them by default, with a 2D and a 3D configuration."""
    statistics = {"max": 600.0, "mean": 300.0, "median": 300.0, "min": 100.0}
    statistics |= {"percentile_00_5": 150.0, "percentile_99_5": 450.0, "std": 50.0}
    shape = list(SIZES[size].values())[-1][0]
    return {
        "dataset_name": NAMES[size],
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.5] * 3,
        "original_median_shape_after_transp": list(shape),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": statistics},
        "configurations": {
            c: _configuration(c, *SIZES[size][c], size == "residual") for c in SIZES[size]
        },
    }


def _configuration(
    name: str,
    shape: Sequence[int],
    patch: Sequence[int],
    batch: int,
    features: Sequence[int],
    residual: bool,
) -> dict[str, Any]:
    dimension, stages = len(patch), len(features)
    later = [1, 2, 2] if patch[0] < 16 else [2, 2, 2]
    kind = "resample_data_or_seg_to_shape"
    resampling = {"order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"{PLANS}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(shape)[-dimension:],
        "spacing": [1.5] * dimension,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": kind,
        "resampling_fn_seg": kind,
        "resampling_fn_probabilities": kind,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": make_architecture(
            RESIDUAL if residual else PLAIN,
            features,
            [[1] * dimension, *[later[-dimension:]] * (stages - 1)],
            RESIDUAL_BLOCKS if residual else [2] * stages,
        ),
        "batch_dice": dimension == 2,
    }


def _describe(root: Path, size: str, patients: int = PATIENTS) -> None:
    """Everything but the cases; fold f validates on every fifth patient from f."""
    preprocessed, raw = root / "preprocessed" / NAMES[size], root / "raw" / NAMES[size]
    cases = {case: int(case[1:].split("_")[0]) for case in list_cases(patients)}
    splits = [
        {side: [c for c, p in cases.items() if (p % 5 == f) == (side == "val")] for side in SIDES}
        for f in range(2)
    ]
    origin = {c: {"patient": f"p{p}", "dataset": size, "part": "Tr"} for c, p in cases.items()}
    folders = [preprocessed / f"{PLANS}_{configuration}" for configuration in SIZES[size]]
    folders += [raw / c / kind for c in SIZES[size] for kind in ("imagesTr", "labelsTr")]
    folders += [preprocessed / "nnssl", preprocessed / "gt_segmentations", root / "results"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("dataset.json", {**DATASET_JSON, "numTraining": len(cases)}),
        ("splits_final.json", splits),
        ("nnssl/cases.json", {"cases": origin, "version": 1}),
        (f"{PLANS}.json", make_plans(size)),
        ("dataset_fingerprint.json", {}),
    ):
        write_json(preprocessed / name, content)


def _write_noise(job: tuple[Path, str, str, str]) -> None:
    root, size, configuration, case = job
    shape, patch = SIZES[size][configuration][:2]
    rng = np.random.default_rng([*os.fsencode(case)])
    image = rng.standard_normal((1, *shape), np.float32)
    image[0, :, shape[1] // 8 : -shape[1] // 8, shape[2] // 8 : -shape[2] // 8] += 2  # the tissue
    labels = (image > 2).astype(np.int8)
    places = np.argwhere(labels == 1)[::997]
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    geometry = {"spacing": (1.5,) * 3, "origin": (0.0,) * 3, "direction": direction}
    blocks, chunks = comp_blosc2_params(image.shape, (1,) * (3 - len(patch)) + patch)
    nnUNetDatasetBlosc2.save_case(
        image,
        labels,
        {
            "sitk_stuff": geometry,
            "spacing": [1.5] * 3,
            "shape_before_cropping": shape,
            "bbox_used_for_cropping": [[0, n] for n in shape],
            "shape_after_cropping_and_before_resampling": shape,
            "class_locations": {1: places, 2: places},
        },
        str(root / "preprocessed" / NAMES[size] / f"{PLANS}_{configuration}" / case),
        chunks=chunks,
        blocks=blocks,
        clevel=1,
    )


def _preprocess_case(job: tuple[Path, str, str]) -> None:
    """A noisy ball with a core, written and preprocessed."""
    (root, configuration, case), size = job, "tiny"
    shape = SIZES[size][configuration][0]
    rng = np.random.default_rng([*os.fsencode(case)])
    centre = np.array(shape) * rng.uniform(0.45, 0.55, 3)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    far = sum(((a - c) / (0.4 * n)) ** 2 for a, c, n in zip(axes, centre, shape, strict=True))
    label = (far < 0.8).astype(np.uint8) + (far < 0.25).astype(np.uint8)
    image = 100 * label + rng.standard_normal(shape, np.float32) * 20 + 200
    raw = root / "raw" / NAMES[size] / configuration
    files = raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr" / f"{case}.nii.gz"
    for array, file in zip((image.astype(np.float32), label), files, strict=True):
        volume = SimpleITK.GetImageFromArray(array)
        volume.SetSpacing((1.5, 1.5, 1.5))
        SimpleITK.WriteImage(volume, str(file), useCompression=False)
    preprocessed = root / "preprocessed" / NAMES[size]
    truth = preprocessed / "gt_segmentations" / f"{case}.nii.gz"
    if configuration == "3d_fullres":
        truth.write_bytes(files[1].read_bytes())
    plans = PlansManager(json.loads((preprocessed / f"{PLANS}.json").read_text()))
    manager = plans.get_configuration(configuration)
    target = str(preprocessed / manager.data_identifier / case)
    with redirect_stdout(StringIO()):
        DefaultPreprocessor(verbose=False).run_case_save(
            target, [str(files[0])], str(files[1]), plans, manager, DATASET_JSON
        )


if __name__ == "__main__":
    write_random(Path(sys.argv[1]), sys.argv[2], os.cpu_count() or 1)
