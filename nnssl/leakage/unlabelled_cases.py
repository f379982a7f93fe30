"""Images without labels as cases of the sampler: numbered like the training cases they join."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnssl.data.case_store import Case
from nnssl.data.case_table import PositionAxis, anatomical_axis
from nnssl.leakage.unlabelled import Unlabelled
from nnssl.nnunet.cases import read_cases


def unlabelled_cases(
    chosen: Unlabelled,
    training: Sequence[Case],
    dataset: Path,
    transpose: Sequence[int],
    position_axis: PositionAxis,
) -> list[Case]:
    """Cases of the images that were chosen.

    Patients and datasets of origin that training cases have keep their numbers, so that images of
    one patient count as one patient; others get numbers of their own.

    Args:
        chosen: the images.
        training: the training cases.
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        transpose: `transpose_forward` of the plans.
        position_axis: knob of the sampling.
    """
    records = read_cases(dataset, [case.identifier for case in training])
    patients: dict[tuple[str, str], int] = {}
    datasets: dict[str, int] = {}
    for case in training:
        record = records[case.identifier]
        patients[record.dataset, record.patient] = case.patient
        datasets[record.dataset] = case.dataset
    made = []
    for member in chosen.members:
        image = member.image
        patient = _number(patients, (member.dataset, image.patient))
        origin = _number(datasets, member.dataset)
        axis, sign = anatomical_axis(image.direction, transpose, position_axis)
        made.append(Case(image.identifier, patient, origin, image.shape, axis, sign, member.folder))
    return made


def _number(known: dict, name: object) -> int:  # type: ignore[type-arg]
    """Number of a name; a new name gets the next one."""
    return int(known.setdefault(name, max(known.values(), default=-1) + 1))
