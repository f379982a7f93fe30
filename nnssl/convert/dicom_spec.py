"""A spec for a DICOM tree: series and structures are chosen by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nnssl.convert.dicom_tree import GROUPS, Tree, count_lines, find_matching
from nnssl.convert.private import make_own_spec
from nnssl.convert.spec import DatasetSpec

LAYOUT = "  any folders; series are told apart by their headers"


def make_dicom_spec(
    tree: Tree,
    name: str,
    series: Sequence[str],
    label: str | None = None,
    labels: Sequence[str] = (),
    **entries: Any,
) -> DatasetSpec:
    """A spec for the series of a tree, and for the SEG and RTSTRUCT objects that refer to them.

    Args:
        tree: The headers.
        name: Name of the dataset.
        series: Choice of each channel: ``CHANNEL=REGEX``, searched in ``Header.about``, in capitals
            or not. A single one may lack its channel, which is the modality then.
        label: Regular expression that chooses among SEG and RTSTRUCT objects.
        labels: Names of the labels, in the order of their values, each with a regular expression
            of whole names of structures (default: its own name): ``tumour=GTV-?1``.
        entries: Further entries of the spec.

    Raises:
        ValueError: Nothing is chosen, or nothing fits the choice; what there is, is listed.
    """
    there = f"; there are (number, modality, description, orientation):\n{tree.describe_series()}"
    if not series:
        raise ValueError(f"--series is missing, e.g. --series T1='t1.*tra'{there}")
    channels = dict(_channel(each, tree, there) for each in series)
    if len(channels) < len(series):
        raise ValueError(f"--series has {list(series)}; each channel needs a name of its own")
    spec = make_own_spec(
        name=name,
        channels=channels,
        case="_".join(f"{{{group}}}" for group in GROUPS[: 3 if len(channels) == 1 else 2]),
        patient="{patient}",
        layout=LAYOUT,
        label=None,
        labels=(),
        dicom=True,
        **entries,
    )
    if not label and not labels:
        return spec
    if not labels:
        known = count_lines(each for label in tree.labels for each in label.structures)
        raise ValueError(f"--labels is missing, e.g. --labels tumour='gtv.*'; there are:\n{known}")
    pairs = [each.partition("=") for each in labels]
    values = {"background": 0}
    for each, _, _ in pairs:
        values.setdefault(each, len(values))
    structures = {pattern or re.escape(each): values[each] for each, _, pattern in pairs}
    return replace(spec, label=label or ".", labels=values, structures=structures)


def _channel(choice: str, tree: Tree, there: str) -> tuple[str, str]:
    """Channel (the modality, where none is named) and regular expression of a choice."""
    named = re.match(r"([\w-]+)=", choice)
    name, pattern = (named[1], choice[named.end() :]) if named else ("", choice)
    abouts = (files[0].about for files in tree.images.values())
    try:
        found = sorted({each.split()[0] for each in abouts if find_matching({"": pattern}, each)})
    except re.error as error:
        raise ValueError(f"--series has {choice!r}, no regular expression: {error}") from error
    if not found:
        raise ValueError(f"--series has {choice!r}, which no series matches{there}")
    if not name and len(found) > 1:
        raise ValueError(f"--series has {choice!r}, which matches {found}; name its channel")
    return name or found[0], pattern
