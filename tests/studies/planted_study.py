"""A small study in nnU-Net's true layout, with scores that are known by construction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from nnssl.nnunet.paths import FINAL
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import FinetuningArm, PretrainingArm, Study

DATASET = "Dataset007_Planted"
PATIENTS = 3
FRAMES = 2
SIZE, EDGE = 14, 8  # reference: a cube of EDGE voxels; the prediction lacks some of its layers
SPACING = (1.5, 1.0, 2.0)  # x, y, z in mm
Dice = Callable[[Cell, int], float]
STUDY: dict[str, Any] = {
    "name": "planted",
    "summary": "planted effects",
    "pretraining": {"M": PretrainingArm("nnSSLContrastiveTrainer")},
    "schedules": {"short": FinetuningArm(overrides={"num_epochs": 2})},
    "dataset": 7,
    "budgets": (2,),
    "plans": "nnUNetPlans",
}


def case(patient: int, frame: int) -> str:
    return f"p{patient:02d}_f{frame}"


def missing_layers(dice: float) -> int:
    """Layers of the cube to take away for about this Dice: 2 (8 - n) / (16 - n)."""
    return round((16 - 16 * dice) / (2 - dice))


def true_dice(layers: int) -> float:
    return 2 * (EDGE - layers) / (2 * EDGE - layers)


def plant(root: Path, dice: Dice, skip: set[str] | None = None, **changes: Any) -> StudyFolder:
    """Writes study, preprocessed dataset and every cell but those in `skip`.

    Args:
        root: gets the folders `study` and `preprocessed`.
        dice: wanted Dice of a cell and patient.
        skip: ids of cells that never ran.
        changes: to `STUDY`.
    """
    study = Study(**{**STUDY, **changes})
    folder, dataset = StudyFolder(study, root / "study"), root / "preprocessed" / DATASET
    folder.write()
    _write_dataset(dataset)
    for cell in folder.cells:
        if cell.id not in (skip or set()):
            (folder.cell_folder(cell) / DATASET).mkdir(parents=True)
            fold = folder.fold_folder(cell)
            _write_run(fold, cell)
            if cell.kind == "finetune":
                _write_validation(fold, dataset, lambda p, cell=cell: dice(cell, p))
    return folder


def _write_dataset(dataset: Path) -> None:
    names = [case(p, f) for p in range(PATIENTS) for f in range(FRAMES)]
    records = {name: {"patient": name[:3], "dataset": "Planted"} for name in names}
    _write_json(dataset / "nnssl" / "cases.json", {"cases": records})
    _write_json(dataset / "splits_final.json", [{"train": [], "val": names}])
    for name in names:
        _write_labels(dataset / "gt_segmentations" / f"{name}.nii.gz", 0)


def _write_run(fold: Path, cell: Cell) -> None:
    fold.mkdir(parents=True)
    labels = {"background": 0, "cube": 1, "never": 2}
    _write_json(fold.parent / "dataset.json", {"labels": labels, "file_ending": ".nii.gz"})
    _write_json(fold.parent / "plans.json", {"configurations": {"2d": {"data_identifier": "P_2d"}}})
    versions = {"nnssl": "0.1", "nnunetv2": "2.8.1"}
    torch.save({"network_weights": {}, "nnssl": {"versions": versions}}, fold / FINAL)
    (fold / "resolved_config.yaml").write_text(f"name: {cell.trainer}\n")
    (fold / "training_log_2026_1_1_00_00_00.txt").write_text(
        "\n2026-01-01 00:00:00.000000: Epoch 0 \n"
        "2026-01-01 00:15:00.000000: Pseudo dice [np.float32(0.25), np.float32(nan)] \n"
        "2026-01-01 00:15:01.000000: Epoch 1 \n"
        "2026-01-01 00:30:00.000000: Pseudo dice [0.75, 0.25] \n"
    )
    numbers = {"number_of_patients": 2, "number_of_volumes": 4, "number_of_slices": 36}
    if cell.kind == "finetune":
        _write_json(fold / "labelled_cases.json", numbers)


def _write_validation(fold: Path, dataset: Path, dice: Callable[[int], float]) -> None:
    entries = []
    for patient in range(PATIENTS):
        layers = missing_layers(dice(patient))
        for frame in range(FRAMES):
            predicted = fold / "validation" / f"{case(patient, frame)}.nii.gz"
            _write_labels(predicted, layers)
            one = {"Dice": true_dice(layers)}
            entries.append(
                {
                    "metrics": {"1": one, "2": {"Dice": float("nan")}},
                    "prediction_file": str(predicted),
                    "reference_file": str(dataset / "gt_segmentations" / predicted.name),
                }
            )
    summary = {"metric_per_case": entries, "foreground_mean": {"Dice": 0.0}}
    _write_json(fold / "validation" / "summary.json", summary)


def _write_labels(path: Path, layers: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((SIZE,) * 3, dtype=np.uint8)
    labels[3 : 3 + EDGE - layers, 3 : 3 + EDGE, 3 : 3 + EDGE] = 1
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
