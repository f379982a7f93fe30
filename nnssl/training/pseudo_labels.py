"""Offline pseudo-labels: a dataset whose further training cases a fine-tuned model has labelled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnssl.common.files import atomic_path, hash_json, put_back, read_json, write_json
from nnssl.nnunet.cases import make_cases_file
from nnssl.nnunet.checkpoint import own_part, read_checkpoint
from nnssl.nnunet.paths import (
    CASES_FILE,
    DATASET_FILE,
    FINAL,
    RESULTS,
    SPLITS_FILE,
    TRAINING_LABELS,
    Roots,
    root_folder,
)
from nnssl.nnunet.planned_network import build_network
from nnssl.nnunet.plans import count_channels
from nnssl.nnunet.splits import read_fold

RECORD_FILE = "pseudo_labels.json"  # which labels are true, and how sure the others are


@dataclass(frozen=True)
class PseudoLabelling:
    """Fine-tuned models of one fold that label its unlabelled training cases together.

    Args:
        checkpoints: final checkpoints of fine-tuning runs with the same dataset, plans,
            configuration, fold and labelled cases; their logits are averaged.
        roots: of nnU-Net's datasets.

    Raises:
        ValueError: the runs do not belong together, or hold all labels of the fold.
    """

    checkpoints: Sequence[Path]
    roots: Roots

    @cached_property
    def contents(self) -> list[dict[str, Any]]:
        return [read_checkpoint(file) for file in self.checkpoints]

    @cached_property
    def own(self) -> dict[str, Any]:
        """What the runs say of themselves; they must agree."""
        told = []
        for file, content in zip(self.checkpoints, self.contents, strict=True):
            own, init = own_part(content, "finetune"), content["init_args"]
            labels = own["labels"] or {}
            if labels.get("slices"):
                raise ValueError(
                    f"{file}: its labels are single slices; pseudo-labels are made for whole cases "
                    "(labels.patients, labels.volumes, labels.percentage or labels.cases)"
                )
            told.append(
                {
                    "dataset": own["dataset"],
                    "configuration": own["configuration"],
                    "fold": own["fold"],
                    "plans": init["plans"],
                    "labelled": labels.get("cases"),
                }
            )
        for name, first in told[0].items():
            for file, other in zip(self.checkpoints, told, strict=True):
                if other[name] != first:
                    raise ValueError(
                        f"{file} has another {name} than {self.checkpoints[0]}; models that label "
                        "together are trained on the same labels of the same fold"
                    )
        return told[0]

    @cached_property
    def dataset(self) -> str:
        return str(self.own["dataset"])

    @cached_property
    def unlabelled(self) -> list[str]:
        """Training cases of the fold that the models have no label of."""
        train, _ = self.split
        cases = sorted(set(train) - set(self.own["labelled"]))
        if not cases:
            raise ValueError(
                f"all {len(train)} training cases of fold {self.own['fold']} are labelled; nothing "
                "is left to label. Train with a label budget (labels.patients=2) first."
            )
        return cases

    @cached_property
    def split(self) -> tuple[list[str], list[str]]:
        return read_fold(self.roots.preprocessed / self.dataset, self.own["fold"])

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Case -> files of its images and its label, as nnU-Net finds them."""
        raw = self.roots.raw / self.dataset
        found: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(str(raw))
        return found

    def write(self, name: str, keep: float, device: torch.device) -> Path:
        """Labels the unlabelled training cases and writes a dataset; goes on where it stopped.

        Args:
            name: `DatasetXXX_NAME`.
            keep: share of the pseudo-labelled cases that are trained on, the surest ones.
            device: of the prediction.

        Returns:
            The new folder in `nnUNet_raw`.

        Raises:
            ValueError: there is such a dataset already.
        """
        target, prepared = self.roots.raw / name, self.roots.preprocessed / name
        partial = self.roots.raw / f".{name}.partial"
        for folder in (target, prepared):
            if folder.exists():
                raise ValueError(f"{folder} exists already; choose another name (-o)")
        job = hash_json([[str(file), file.stat().st_mtime_ns] for file in self.checkpoints])
        if partial.exists() and read_json(partial / RECORD_FILE).get("job") != job:
            shutil.rmtree(partial)
        agreement = self._predict(partial, job, device)
        order = sorted(agreement, key=lambda case: (-agreement[case], case))
        kept = sorted(order[: max(1, round(keep * len(order)))])
        self._describe(partial, target, kept, agreement, job)
        prepared.mkdir(parents=True)
        plans = {**self.own["plans"], "dataset_name": name}
        write_json(prepared / f"{plans['plans_name']}.json", plans)
        for file in (DATASET_FILE, SPLITS_FILE, CASES_FILE):
            put_back(partial / file, prepared / file)
        os.replace(partial, target)
        return target

    def _predict(self, folder: Path, job: str, device: torch.device) -> dict[str, float]:
        """Writes the predicted labels; case -> agreement of its two predictions."""
        record = folder / RECORD_FILE
        agreement = read_json(record)["agreement"] if record.is_file() else {}
        write_json(record, {"job": job, "agreement": agreement})
        missing = [case for case in self.unlabelled if case not in agreement]
        predictor = self._make_predictor(device) if missing else None
        ending = predictor.dataset_json["file_ending"] if predictor else ""
        for case in tqdm(missing, "predict"):
            assert predictor is not None
            agreement[case] = _label(
                predictor, self.files[case]["images"], folder / TRAINING_LABELS / f"{case}{ending}"
            )
            write_json(record, {"job": job, "agreement": agreement})
        return {case: float(agreement[case]) for case in self.unlabelled}

    def _make_predictor(self, device: torch.device) -> nnUNetPredictor:
        description = read_json(self.roots.raw / self.dataset / DATASET_FILE)
        manager, first = PlansManager(self.own["plans"]), self.contents[0]
        configuration = manager.get_configuration(self.own["configuration"])
        heads = manager.get_label_manager(description).num_segmentation_heads
        network = build_network(configuration, count_channels(description), heads)
        predictor = nnUNetPredictor(
            device=device, perform_everything_on_device=device.type == "cuda"
        )
        predictor.manual_initialization(
            network,
            manager,
            configuration,
            [content["network_weights"] for content in self.contents],
            description,
            first["trainer_name"],
            first["inference_allowed_mirroring_axes"],
        )
        return predictor

    def _describe(
        self, folder: Path, target: Path, kept: list[str], agreement: dict[str, float], job: str
    ) -> None:
        """Dataset, fold, patients and record of the new dataset."""
        source = self.roots.raw / self.dataset
        description = read_json(source / DATASET_FILE)
        labelled, validation = sorted(self.own["labelled"]), self.split[1]
        entries = {}
        for case in sorted([*labelled, *kept, *validation]):
            files = self.files[case]
            predicted = f"{TRAINING_LABELS}/{case}{description['file_ending']}"
            label = predicted if case in kept else os.path.relpath(files["label"], target)
            images = [os.path.relpath(image, target) for image in files["images"]]
            entries[case] = {"images": images, "label": label}
        description |= {"dataset": entries, "numTraining": len(entries)}
        write_json(folder / DATASET_FILE, description)
        split = [{"train": sorted([*labelled, *kept]), "val": validation}]
        write_json(folder / SPLITS_FILE, split)
        known = self.roots.preprocessed / self.dataset / CASES_FILE
        if known.is_file():
            cases = read_json(known)["cases"]
            write_json(folder / CASES_FILE, make_cases_file({c: cases[c] for c in entries}))
        write_json(
            folder / RECORD_FILE,
            {
                "job": job,
                "models": [str(file) for file in self.checkpoints],
                "true_labels": labelled,
                "pseudo_labels": kept,
                "agreement": agreement,
            },
        )


def find_checkpoint(run: Path) -> Path:
    """The final checkpoint of a run, given as its file, its fold's folder, or below the results.

    Raises:
        ValueError: there is none.
    """
    for place in (run, root_folder(RESULTS) / run):
        for file in (place, place / FINAL):
            if file.is_file():
                return file.absolute()
    raise ValueError(
        f"{run}: no finished run; give the folder of a fold of a fine-tuned model that holds "
        f"{FINAL}, or that file"
    )


def _label(predictor: nnUNetPredictor, images: list[str], file: Path) -> float:
    """Writes the prediction of a case; how far it agrees with the one without mirroring.

    The agreement is the mean Dice of both over the classes (or regions) that either of them shows;
    1 where both show nothing.

    Raises:
        ValueError: the model mirrors along no axis, so that there is nothing to compare.
    """
    axes = predictor.allowed_mirroring_axes
    if not axes:
        raise ValueError(
            "the model was trained without mirroring, by whose agreement cases are ranked; train "
            "it with a trainer that mirrors"
        )
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images(images)
    mirrored = predictor.predict_single_npy_array(image, properties)
    predictor.allowed_mirroring_axes = None
    plain = predictor.predict_single_npy_array(image, properties)
    predictor.allowed_mirroring_axes = axes
    with atomic_path(file, sole_writer=True) as part:
        reader.write_seg(mirrored, str(part), properties)
    return measure_agreement(mirrored, plain)


def measure_agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Mean Dice of two label maps over the labels above 0 that either shows; 1 without any."""
    labels = sorted({*np.unique(one), *np.unique(other)} - {0})
    dice = [
        2
        * np.sum((one == label) & (other == label))
        / (np.sum(one == label) + np.sum(other == label))
        for label in labels
    ]
    return float(np.mean(dice)) if dice else 1.0
