"""Ancestry: what a checkpoint keeps of all that its weights, and those before them, have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.copies import load_case_thumbnails, make_signatures
from nnssl.data.pool.settings import MARK
from nnssl.data.thumbnails import stack_thumbnails
from nnssl.leakage.seen import NOTHING_TOLD, RECORD_KEYS, STOCK
from nnssl.leakage.unlabelled import ChosenImages
from nnssl.nnunet.cases import read_all_cases
from nnssl.nnunet.checkpoint import find_plans
from nnssl.nnunet.paths import find_data_identifier

ANCESTORS = "ancestors"  # key in a checkpoint
Ancestor = dict[str, Any]  # what `Seen.of` reads of one training
UNKNOWN: Ancestor = {"kind": "unknown", "untold": NOTHING_TOLD}


def record_patients(dataset: Path, cases: Sequence[str]) -> dict[str, Any]:
    """Whose the training cases are, by which any later run can ask; empty where nobody knows.

    Args:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        cases: identifiers of the training cases.
    """
    known = read_all_cases(dataset)
    if not set(cases) <= known.keys():
        return {}
    columns = {key: [getattr(known[case], key) for case in cases] for key in RECORD_KEYS}
    return {"records": columns}


def record_signatures(
    folder: Path, cases: Sequence[str], images: ChosenImages, workers: int
) -> dict[str, Any]:
    """Signatures of all that is trained on, cases before images without labels.

    Raises:
        CaseError: an image is missing or cannot be read.
    """
    of_cases = load_case_thumbnails(folder, cases, workers)
    of_images = stack_thumbnails([each.image.decode_thumbnail() for each in images.members])
    return {"signatures": make_signatures(np.concatenate([of_cases, of_images]))}


def trace_ancestry(checkpoint: Mapping[str, Any]) -> list[Ancestor]:
    """What was seen by the training that wrote a checkpoint, and by all that it started from.

    The training itself comes first. Where a training does not tell what it started from, an
    unknown one follows it.
    """
    own, init = (checkpoint.get(key) or {} for key in ("nnssl", "init_args"))
    if own:
        return [_describe({**init, **own}), *_find_ancestors(own)]
    if (found := find_plans(checkpoint)) is None:
        return [UNKNOWN]
    untold = "nnU-Net's own trainers do not record what their weights started from."
    stock = {"kind": STOCK, "dataset": found[0].get("dataset_name")}
    return [_describe({**init, **stock}), {**UNKNOWN, "untold": untold}]


def _describe(own: Mapping[str, Any]) -> Ancestor:
    plans, configuration = own.get("plans") or {}, own.get("configuration")
    identifier = find_data_identifier(plans, configuration)
    kept = {key: plans[key] for key in ("plans_name", MARK) if key in plans}
    if identifier is not None:
        kept["configurations"] = {configuration: {"data_identifier": identifier}}
    # fine-tuned checkpoints of older versions list the cases with their labels only
    cases = own.get("cases") or {"train": (own.get("labels") or {}).get("cases")}
    return {
        "kind": own.get("kind"),
        "dataset": own.get("dataset"),
        "fold": own.get("fold"),
        "configuration": configuration,
        "plans": kept,
        "cases": {key: value for key, value in cases.items() if key != "left_out"},
    }


def _find_ancestors(own: Mapping[str, Any]) -> list[Ancestor]:
    """Those that a checkpoint lists; older versions do not list them."""
    if (listed := own.get(ANCESTORS, own.get("weights", {}).get(ANCESTORS))) is not None:
        return list(listed)
    config = (own.get("config") or {}).get("sections", {})
    initial = config.get("training", {}).get("initial_weights")
    is_first = own.get("weights", {}).get("how") == "random" or own.get("kind") == "pretrain"
    untold = f"It is not recorded what the weights that {own.get('dataset')} began with had seen."
    return [] if is_first and initial is None else [{**UNKNOWN, "untold": untold}]
