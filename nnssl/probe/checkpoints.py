"""Probing checkpoints after training, and choosing one inside the labelled budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nnssl.data.labels import LabelBudget, choose_labelled
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import judge_source
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.probe.dice import DiceTable, Examples
from nnssl.probe.encoder_probe import EncoderResult, fit_and_score
from nnssl.probe.encoders import initial_state, network_with, own_generators
from nnssl.probe.fold import ProbeFold
from nnssl.probe.run import Probe, place_of, without_nan
from nnssl.probe.volumes import Volumes, structures_of

LEAST_PATIENTS = 3
STORED = ("contaminated", "seen_validation_cases")
RANDOM, REFERENCE = "random", "reference"


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint chosen by leave-one-patient-out inside the labelled budget.

    Attributes:
        file: the checkpoint with the highest mean Dice; the first of equals.
        tables: file -> Dice of each labelled case, scored by the classifier of all others.
        record: plain record, for a file.
    """

    file: Path
    tables: dict[Path, DiceTable]
    record: dict[str, Any]


def probe_checkpoints(
    probe: Probe, files: Sequence[Path], reference: Path | None = None
) -> tuple[dict[str, EncoderResult], dict[str, Any]]:
    """Probes a random network, then every file, on the fold's validation cases.

    The random network is the one that the first file's pre-training began with.

    Returns:
        Name (the file's path, `random`, `reference`) -> result; and the content of `probe.json`.

    Raises:
        ValueError: too few patients, or a file that is no checkpoint of these plans.
        FileNotFoundError: a file is missing.
    """
    cases, reason = probe.cases()
    named = {str(file): file for file in files}
    named |= {REFERENCE: reference} if reference else {}
    first = initial_state(read_checkpoint(next(iter(files))))
    results = {RANDOM: probe.random(cases, *first)}
    fold, seen = probe.fold, {}
    evaluation = Evaluation(fold.folder.parent, fold.fold, fold.val)
    for name, file in tqdm(named.items(), desc="probe", disable=None):
        content = read_checkpoint(file)
        judgement = judge_source(content.get("nnssl") or {}, evaluation)
        contaminated = {key: judgement.record[key] for key in STORED}
        seen[name] = {"file": str(file), **contaminated}
        results[name] = probe.encoder(
            lambda: network_with(content["network_weights"], probe.fold, probe.device, name),  # noqa: B023
            cases,
        )
    return results, probe.record(results, cases, reason, checkpoints=seen)


def choose_checkpoint(
    fold: ProbeFold, files: Sequence[Path], budget: LabelBudget, device: torch.device
) -> ChosenCheckpoint:
    """The checkpoint whose frozen features segment held-out labelled patients best.

    Reads the images and labels of the budget's cases only: each patient is scored by a classifier
    that was fitted on the others. No validation case is opened.

    Args:
        fold: what is probed.
        files: checkpoints to choose from.
        budget: the labelled cases, as in fine-tuning.
        device: where the networks run.

    Raises:
        ValueError: fewer than 3 labelled patients, no labels, or a file of other plans.
    """
    labelled = choose_labelled(budget, fold.train, fold.records(fold.train))
    if len(labelled.patients) < LEAST_PATIENTS:
        raise ValueError(
            f"choosing by probe: found {len(labelled.patients)} labelled patients, allowed from "
            f"{LEAST_PATIENTS} (each is scored by a classifier fitted on the others). Take the "
            "last checkpoint (checkpoint_final.pth) instead, or label more patients."
        )
    volumes = Volumes(fold.folder, structures_of(fold.dataset_json), device)
    if reason := volumes.why_unlabelled(labelled.cases):
        raise ValueError(f"choosing by probe needs labels: {reason}")
    examples = Examples(volumes, labelled.cases)
    records = fold.records(labelled.cases)
    groups = [
        frozenset(case for case in labelled.cases if records[case].patient == patient)
        for patient in labelled.patients
    ]
    tables = {}
    for file in tqdm(files, desc="probe", disable=None):
        weights = read_checkpoint(file)["network_weights"]
        with own_generators(device):
            network = network_with(weights, fold, device, str(file))
            tables[file] = fit_and_score(network, volumes, examples, groups)
    best = max(tables, key=lambda file: tables[file].mean)
    record = {
        "labels": "Only the labels of these cases were read; validation cases were not opened.",
        **place_of(fold),
        "labelled": labelled.to_dict(),
        "dice": {str(file): table.mean for file, table in tables.items()},
        "dice_per_structure": {str(file): table.per_structure for file, table in tables.items()},
        "dice_per_case": {str(file): table.per_case for file, table in tables.items()},
        "chosen": str(best),
    }
    return ChosenCheckpoint(best, tables, without_nan(record))
