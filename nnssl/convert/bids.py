"""BIDS: a spec from suffixes and entities of files instead of patterns of paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nnssl.convert.private import make_expression, make_own_spec, split_channels
from nnssl.convert.spec import DatasetSpec

# entities that tell images of a subject apart; a label may have others (space, desc, label, ...)
ENTITIES = "ses sample task acq ce trc stain rec dir run mod echo flip inv mt part proc chunk"
LAYOUT = """\
  sub-01/[ses-02/]anat/sub-01[_ses-02][_acq-high][_run-1]_T1w.nii.gz
  derivatives/manual/sub-01/anat/sub-01[_ses-02][_acq-high][_run-1]_label-lesion_mask.nii.gz
Entities that a choice names choose files (T1=acq-high_T1w, T1=acq-*_T1w); all others tell cases
apart, so that images and labels of one case must have the same."""


def make_bids_spec(
    name: str,
    images: Sequence[str],
    label: str | None = None,
    labels: Sequence[str] = (),
    **entries: Any,
) -> DatasetSpec:
    """A spec for a BIDS folder; every combination of subject, session, run, ... is a case.

    Reference: Gorgolewski et al., The brain imaging data structure, 2016,
    doi:10.1038/sdata.2016.44.

    Args:
        name: Name of the dataset.
        images: Choices of files, each as ``CHANNEL=CHOICE``. A choice is
            ``[FOLDER/][ENTITY-VALUE_...]SUFFIX``: ``T1w``, ``acq-high_T1w``,
            ``derivatives/fmriprep/desc-preproc_T1w``; ``*`` stands for any value.
        label: Choice of the labels, ``derivatives/manual/label-lesion_mask``.
        labels: Names of the labels, as for any private collection.
        entries: Further entries of the spec.

    Raises:
        ValueError: A choice, label or entry is impossible.
    """
    channels = split_channels(images, "FLAIR=FLAIR or T1=acq-high_T1w")
    choices = [*channels.values(), *([label] if label else [])]
    named = {pair.partition("-")[0] for each in choices for pair in _split(each)[1]}
    groups = [entity for entity in ENTITIES.split() if entity not in named]
    return make_own_spec(
        name=name,
        channels={channel: _pattern(choice, groups) for channel, choice in channels.items()},
        case="{sub}" + "".join(f"{{{entity}}}" for entity in groups),
        patient="{sub}",
        layout=LAYOUT,
        label=_pattern(label, groups) if label else None,
        labels=labels,
        **entries,
    )


def _split(choice: str) -> tuple[str, list[str], str]:
    """Folder, entities (``acq-high``) and suffix of a choice."""
    match = re.fullmatch(r"(.+/)?((?:[A-Za-z0-9]+-[^_/]+_)*)([A-Za-z0-9]+)", choice)
    if match is None:
        raise ValueError(
            f"{choice!r} chooses no BIDS files; allowed: [FOLDER/][ENTITY-VALUE_...]SUFFIX, e.g. "
            "T1w, acq-high_T1w, derivatives/manual/label-lesion_mask"
        )
    return match[1] or "", match[2].split("_")[:-1], match[3]


def _pattern(choice: str, groups: Sequence[str]) -> str:
    r"""The regular expression of a choice, from the source on (``\A``); entities in any order."""
    folder, chosen, suffix = _split(choice)
    captured = "".join(rf"(?=(?:[^/]*(?P<{entity}>_{entity}-[^_/]+))?)" for entity in groups)
    wanted = "".join(f"(?=[^/]*_{make_expression(pair)}_)" for pair in chosen)
    return (
        rf"\A{make_expression(folder)}(?P<sub>sub-[^/_]+)/(?:ses-[^/]+/)?(?:[^/]+/)?(?P=sub)"
        rf"{captured}{wanted}(?:_[A-Za-z0-9]+-[^_/]+)*_{suffix}\.nii(?:\.gz)?"
    )
