"""Whether a pre-training of the same dataset has seen the patients of validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnssl.data.unlabelled.records import recorded_patients
from nnssl.nnunet.cases import CaseRecord


def contamination(
    own: Mapping[str, Any],
    dataset: str,
    validation: Sequence[str],
    records: Mapping[str, CaseRecord],
) -> dict[str, Any]:
    """Whether pre-training has seen patients of the validation cases.

    Args:
        own: the part under `nnssl` of the source; empty for a stock checkpoint.
        dataset: today's dataset.
        validation: validation cases of today's fold.
        records: origin of all cases of the fold, training and validation.

    Returns:
        `contaminated` (None: cannot be told) and the `seen_validation_cases`.
    """
    seen = own.get("cases", {}).get("train")
    if seen is None or own.get("dataset") != dataset:
        return {"contaminated": None, "seen_validation_cases": []}
    patients = {(records[c].dataset, records[c].patient) for c in seen if c in records}
    patients |= recorded_patients(own["cases"].get("unlabelled", {}))
    leaked = sorted(
        c
        for c in validation
        if c in set(seen) or (records[c].dataset, records[c].patient) in patients
    )
    return {"contaminated": bool(leaked), "seen_validation_cases": leaked}
