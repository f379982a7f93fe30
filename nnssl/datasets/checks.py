"""Checks that open every file of a case before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.datasets.inventory import Problem
from nnssl.datasets.planning import Case
from nnssl.datasets.volumes import be_quiet, geometry_differences, orientation_of, read_volume


@dataclass(frozen=True)
class Checked:
    """What was found in the files of a case; size and spacing (mm) are in the order x y z."""

    case: Case
    hashes: dict[str, str]
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    values: tuple[float, ...] = ()
    problems: tuple[Problem, ...] = ()


def check_case(case: Case, source: Path, labels: Mapping[str, int]) -> Checked:
    """Read all files of a case; whatever is wrong comes back as problems, never as an exception.

    Args:
        case: The case.
        source: The source folder.
        labels: Label name -> value; other values are problems.
    """
    be_quiet()
    problems: list[Problem] = []
    hashes: dict[str, str] = {}
    images = [_read(case, source, path, hashes, problems) for path in case.images]
    label = _read(case, source, case.label, hashes, problems) if case.label else None
    first, *others = images
    for other in [*others, label]:
        if first is not None and other is not None:
            problems += [Problem(case.identifier, d) for d in geometry_differences(first, other)]
    values = _check_values(case, label, labels, problems) if label is not None else ()
    if first is None:
        return Checked(case, hashes, problems=tuple(problems))
    return Checked(
        case,
        hashes,
        first.GetSize(),
        first.GetSpacing(),
        orientation_of(first),
        values,
        tuple(problems),
    )


def _read(
    case: Case, source: Path, path: str, hashes: dict[str, str], problems: list[Problem]
) -> sitk.Image | None:
    try:
        image, hashes[path] = read_volume(source / path)
    except ValueError as error:
        problems.append(Problem(case.identifier, f"{path} {error}"))
        return None
    return image


def _check_values(
    case: Case, label: sitk.Image, labels: Mapping[str, int], problems: list[Problem]
) -> tuple[float, ...]:
    values = tuple(np.unique(sitk.GetArrayViewFromImage(label)).tolist())
    if unknown := sorted(set(values) - set(labels.values())):
        allowed = ", ".join(f"{value} {name}" for name, value in labels.items())
        what = f"label has the values {unknown[:10]}; allowed: {allowed}"
        problems.append(Problem(case.identifier, what))
    return values
