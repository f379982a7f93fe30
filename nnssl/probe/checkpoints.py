"""Probing checkpoints after training, and choosing one inside the labelled budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nnssl.data.labels import LabelBudget, choose_labelled
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.leakage.ancestry import trace_ancestry
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import judge
from nnssl.modules.metrics import evaluating
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.probe.encoders import build_network_with, isolate_generators, read_initial_state
from nnssl.probe.features import encode_blocks
from nnssl.probe.fold import ProbeFold
from nnssl.probe.linear_probe import DiceTable, Fit, Scorer
from nnssl.probe.probe import Measured, Probe, identify, replace_nan
from nnssl.probe.random_encoder import recall_random
from nnssl.probe.volumes import Examples, Volumes, read_structures

LEAST_PATIENTS = 3
RANDOM, REFERENCE = "random", "reference"


def probe_checkpoints(
    probe: Probe, files: Sequence[Path], reference: Path | None = None
) -> dict[str, Any]:
    """Probes a random network, then every file, on the fold's validation cases.

    The random network is the one that the first file's pre-training began with.

    Returns:
        The content of `probe.json`; encoders are called by their file, `random` or `reference`.

    Raises:
        ValueError: too few patients, or a file that is no checkpoint of these plans.
        FileNotFoundError: a file is missing.
    """
    cases = probe.choose_cases()
    named = {str(file): file for file in files}
    named |= {REFERENCE: reference} if reference else {}
    first = read_initial_state(read_checkpoint(next(iter(files))))
    results: dict[str, Measured] = {RANDOM: recall_random(probe, cases, *first)}
    fold = probe.fold
    plan = PreprocessingPlan(fold.plans, fold.configuration, fold.dataset_json)
    evaluation = Evaluation(fold.folder.parent, fold.fold, fold.val, fold.folder, plan)
    seen = {}
    for name, file in tqdm(named.items(), desc="probe", disable=None):
        content = read_checkpoint(file)
        judgement = judge(trace_ancestry(content), evaluation)
        seen[name] = {
            "file": str(file),
            "contaminated": judgement.contaminated,
            "seen_validation_cases": list(judgement.cases),
            "contamination": list(judgement.reasons),
            "cannot_be_told": [] if judgement.reasons else list(judgement.untold),
        }
        results[name] = probe.probe(
            lambda: build_network_with(content["network_weights"], probe.fold, probe.device, name),  # noqa: B023
            cases,
        )
    return probe.make_record(results, cases, checkpoints=seen)


def choose_checkpoint(
    fold: ProbeFold, files: Sequence[Path], budget: LabelBudget, device: torch.device
) -> dict[str, Any]:
    """Finds the checkpoint whose frozen features segment held-out labelled patients best.

    Reads the images and labels of the budget's cases only: each patient is scored by a classifier
    that was fitted on the others. No validation case is opened.

    Returns:
        Plain record for a file; `chosen` is the file with the highest mean Dice, the first of
        equals, and `dice` holds that of each.

    Raises:
        ValueError: fewer than 3 labelled patients, no labels, or a file of other plans.
    """
    labelled = choose_labelled(budget, fold.train, fold.read_records(fold.train))
    if len(labelled.patients) < LEAST_PATIENTS:
        raise ValueError(
            f"choosing by probe: found {len(labelled.patients)} labelled patients, allowed from "
            f"{LEAST_PATIENTS} (each is scored by a classifier fitted on the others). Take the "
            "last checkpoint (checkpoint_final.pth) instead, or label more patients."
        )
    volumes = Volumes(fold.folder, read_structures(fold.dataset_json), device)
    if reason := volumes.explain_missing_labels(labelled.cases):
        raise ValueError(f"choosing by probe needs labels: {reason}")
    examples = Examples(volumes, labelled.cases)
    records = fold.read_records(labelled.cases)
    groups = [
        frozenset(case for case in labelled.cases if records[case].patient == patient)
        for patient in labelled.patients
    ]
    named = {}
    for file in tqdm(files, desc="probe", disable=None):
        weights = read_checkpoint(file)["network_weights"]
        with isolate_generators(device):
            network = build_network_with(weights, fold, device, str(file))
            named[str(file)] = _score_left_out(network, volumes, examples, groups)
    record = {
        "labels": "Only the labels of these cases were read; validation cases were not opened.",
        **identify(fold),
        "labelled": labelled.to_dict(),
        "dice": {file: table.mean for file, table in named.items()},
        "dice_per_structure": {file: table.per_structure for file, table in named.items()},
        "dice_per_case": {file: table.per_case for file, table in named.items()},
        "chosen": max(named, key=lambda file: named[file].mean),
    }
    return dict(replace_nan(record))


def _score_left_out(
    network: nn.Module, volumes: Volumes, examples: Examples, groups: Sequence[frozenset[str]]
) -> DiceTable:
    """Leave-one-out: each group of cases is scored by the classifier of all other groups."""
    every = frozenset[str]().union(*groups)
    fit = Fit(examples, [every - group for group in groups], volumes.device)
    found = {}
    with evaluating(network):
        for case in sorted(every):
            for block in encode_blocks(network, volumes.read_image(case)):
                fit.add(case, block)
        for group, classifier in zip(groups, fit.solve(), strict=True):
            scorer = Scorer([classifier])
            for case in sorted(group):
                stream = encode_blocks(network, volumes.read_image(case))
                found[case] = scorer.score(stream, volumes.read_labels(case))
    return DiceTable(tuple(volumes.structures.values()), found)
