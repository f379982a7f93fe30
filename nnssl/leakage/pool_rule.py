"""Whether the weights of another dataset, or of a pool, may be fine-tuned on a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, sha256_of
from nnssl.data.pool.members import Patient
from nnssl.data.pool.plans import MARK
from nnssl.data.unlabelled.records import recorded_patients
from nnssl.leakage.overlaps import known_overlaps
from nnssl.nnunet.cases import CASES_FILE, read_cases
from nnssl.nnunet.splits import SPLITS_FILE

MOST_NAMED = 5
OVERRIDE = "weights.allow_contamination=true"


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        contaminated: None: it cannot be told.
        reasons: sentences that speak against an honest evaluation.
        cases: validation cases whose patients were seen.
    """

    contaminated: bool | None
    reasons: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Fold of a dataset on which fine-tuning is validated.

    Attributes:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        fold: number of the fold.
        validation: its validation cases.
    """

    dataset: Path
    fold: int
    validation: Sequence[str]


def inspect(own: Mapping[str, Any], evaluation: Evaluation) -> Verdict:
    """Looks for what is evaluated among what a pre-training of another dataset saw.

    By fold (of a pool of which the dataset is a member), by patient and dataset of origin (the
    dataset's imagesTs too), and by the table of public datasets that share images.

    Args:
        own: the part under `nnssl` of the pre-training checkpoint.
        evaluation: fold of the dataset that is fine-tuned.
    """
    if own.get("kind") != "pretrain":
        return Verdict(None)
    seen = _seen(own, evaluation.dataset.parent)
    cases, tested = _met(seen, evaluation)
    members = own.get("plans", {}).get(MARK, {}).get("members", {})
    is_member = evaluation.dataset.name in members
    origins, here = _origins(own, seen), _evaluated(evaluation)
    reasons = [
        *_by_fold(own, evaluation, bool(seen)),
        *_by_patient(own, cases, tested),
        *_by_table(origins, here),
    ]
    if members and not (seen or is_member) and origins & here:
        reasons.append(
            f"{own['dataset']} has images of {', '.join(sorted(origins & here))}, and its "
            f"{CASES_FILE.as_posix()}, which names the patients, is not in nnUNet_preprocessed."
        )
    if reasons:
        return Verdict(True, tuple(reasons), tuple(cases))
    return Verdict(False if seen or is_member else None)


def refuse(found: Verdict, allowed: bool) -> None:
    """Raises ValueError for a contaminated source, unless the knob allows it."""
    if found.contaminated and not allowed:
        raise ValueError(
            "these weights have seen what this fold evaluates:\n"
            + "\n".join(f"  {reason}" for reason in found.reasons)
            + "\nFine-tune from a pre-training that has not seen it, or set `allow_contamination: "
            f"true` in the section `weights` (for one run: nnssl_overrides='{OVERRIDE}'), which is "
            "stamped into the checkpoint and the report."
        )


def _seen(own: Mapping[str, Any], preprocessed: Path) -> set[Patient]:
    """Patients of the training cases, where the dataset's records are at hand, and of the images
    without labels."""
    cases = own.get("cases", {})
    unlabelled = recorded_patients(cases.get("unlabelled", {}))
    folder = preprocessed / str(own.get("dataset"))
    if not (folder / CASES_FILE).exists():
        return unlabelled
    known = read_json(folder / CASES_FILE)["cases"]
    listed = [known[case] for case in cases.get("train", []) if case in known]
    return unlabelled | {(entry["dataset"], entry["patient"]) for entry in listed}


def _met(seen: set[Patient], evaluation: Evaluation) -> tuple[list[str], list[Patient]]:
    """Validation cases, and patients of imagesTs, that were seen."""
    records = read_cases(evaluation.dataset, evaluation.validation)
    cases = [case for case, record in records.items() if (record.dataset, record.patient) in seen]
    file = evaluation.dataset / CASES_FILE
    entries = read_json(file)["cases"].values() if file.exists() else []
    tested = {(e["dataset"], e["patient"]) for e in entries if e.get("part") == "Ts"}
    return sorted(cases), sorted(tested & seen)


def _origins(own: Mapping[str, Any], seen: set[Patient]) -> set[str]:
    marked = own.get("plans", {}).get(MARK, {}).get("members", {})
    if marked:
        return {origin for origins in marked.values() for origin in origins}
    return {dataset for dataset, _ in seen} or {str(own.get("dataset")).split("_", 1)[-1]}


def _evaluated(evaluation: Evaluation) -> set[str]:
    records = read_cases(evaluation.dataset, evaluation.validation)
    return {record.dataset for record in records.values()}


def _by_fold(own: Mapping[str, Any], evaluation: Evaluation, known: bool) -> list[str]:
    """A member's fold needs the same fold of the pool, drawn from the same folds."""
    mark, name = own.get("plans", {}).get(MARK, {}), evaluation.dataset.name
    if name not in mark.get("members", {}):
        return []
    pool, plans = own["dataset"], own["plans"].get("plans_name")
    if own.get("fold") != evaluation.fold:
        return [
            f"{pool} has {name} as a member and was trained on fold {own.get('fold')}; fold "
            f"{evaluation.fold} needs its fold {evaluation.fold}: nnUNetv2_train {pool} "
            f"{own.get('configuration')} {evaluation.fold} -p {plans} -tr ..."
        ]
    file = evaluation.dataset / SPLITS_FILE
    if not known and file.exists() and sha256_of(read_json(file)) != mark["splits"][name]:
        return [f"the folds of {name} are not those that {pool} was made from ({file})."]
    return []


def _by_patient(own: Mapping[str, Any], cases: list[str], tested: list[Patient]) -> list[str]:
    reasons = []
    if cases:
        named = ", ".join(cases[:MOST_NAMED])
        what = f"patients of {len(cases)} validation cases of this fold ({named})"
        reasons.append(f"{own['dataset']} was trained on the {what}.")
    if tested:
        named = ", ".join(patient for _, patient in tested[:MOST_NAMED])
        reasons.append(f"{own['dataset']} has {len(tested)} patients of imagesTs ({named}).")
    return reasons


def _by_table(seen: set[str], here: set[str]) -> list[str]:
    return [
        f"{each.seen} was seen and {each.evaluated} is evaluated: {each.what} ({each.source})."
        for each in known_overlaps(seen, here)
    ]
