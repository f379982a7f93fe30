"""Any private collection: a spec from a few templates instead of a YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nnssl.convert.labels import LABELS, OTHER
from nnssl.convert.sources import match_end
from nnssl.convert.spec import DatasetSpec

ANY = "any"
LAYOUT = "  any folders; a template such as {patient}/{case}.nii.gz says where the images lie"


def make_private_spec(
    name: str,
    images: Sequence[str],
    label: str | None = None,
    labels: Sequence[str] = (),
    masks: Sequence[str] = (),
    **entries: Any,
) -> DatasetSpec:
    """A spec for files that templates describe.

    ``{name}`` stands for a part of a path component and tells cases apart, ``*`` for any part,
    ``**/`` for any folders; a template that ends in ``/`` names folders of DICOM slices. Cases of
    one ``{patient}`` are never parted; without it, every case is a patient of its own.

    Args:
        name: Name of the dataset.
        images: Templates, each as ``CHANNEL=TEMPLATE``; ``R,G,B=TEMPLATE`` for colours.
        label: Template of the labels; ``None``: images only.
        labels: Names of the labels: ``tumour`` (values 1, 2, ... in this order), ``tumour=3``
            (value in the files) or ``tumour=any`` (all but 0).
        masks: Templates of masks, one file for each structure, each as ``NAME=TEMPLATE``; in place
            of ``label`` and ``labels``.
        entries: Further entries of the spec.

    Raises:
        ValueError: A template, label or entry is impossible.
    """
    channels = split_channels(images, "CT={case}.nii.gz")
    found = re.findall(r"{(\w+)}", next(iter(channels.values()), ""))
    if not found:
        raise ValueError(f"--images is {list(images)}; it needs CHANNEL=TEMPLATE with {{case}}")
    drawn = split_channels(masks, "liver={case}/liver.nii.gz", "--mask")
    groups = [name for name in dict.fromkeys(found) if name != "slice"]
    case = "_".join(f"{{{group}}}" for group in groups)

    def expression(template: str) -> str:
        others = {each for each in (*channels.values(), *drawn.values(), label) if each}
        return make_expression(template, [each for each in others if _is_narrower(each, template)])

    return make_own_spec(
        name=name,
        channels={channel: expression(template) for channel, template in channels.items()},
        case=case,
        patient="{patient}" if "patient" in groups else case,
        layout=LAYOUT,
        label=expression(label) if label else None,
        labels=labels,
        masks={name: expression(each) for name, each in drawn.items()} or None,
        **entries,
    )


def split_channels(images: Sequence[str], example: str, option: str = "--images") -> dict[str, str]:
    """Channel -> where its images lie, from ``CHANNEL=WHERE`` or ``R,G,B=WHERE``."""
    pairs = [each.partition("=") for each in images]
    if wrong := [each for each, (_, mark, _) in zip(images, pairs, strict=True) if not mark]:
        raise ValueError(f"{option} has {wrong}; each is NAME=WHERE, e.g. {example}")
    return {name: where for names, _, where in pairs for name in names.split(",")}


def make_own_spec(
    channels: dict[str, str],
    label: str | None,
    labels: Sequence[str],
    masks: dict[str, str] | None = None,
    **entries: Any,
) -> DatasetSpec:
    """A spec of the user's own data; entries that are None have their defaults."""
    values, remap = _labels(labels) if label else (dict(LABELS), None)
    if masks:
        values = {name: value for value, name in enumerate(["background", *masks])}
    return DatasetSpec(
        description="a private collection",
        modality="/".join(channels),
        channels=channels,
        citation="none (private)",
        licence="private",
        where="your own disk",
        label=label,
        labels=values,
        remap=remap,
        masks=masks,
        **{key: value for key, value in entries.items() if value is not None},
    )


def _is_narrower(template: str, than: str) -> bool:
    """Whether its files are files of the other too: ``{case}_seg.nii.gz`` of ``{case}.nii.gz``."""
    one, other = (re.sub(r"{\w+}|\*\*/|\*", "x", each) for each in (template, than))
    takes_more = bool(match_end(make_expression(than), one))
    return takes_more and not match_end(make_expression(template), other)


def make_expression(template: str, others: Sequence[str] = ()) -> str:
    """The regular expression of a template such as ``{patient}/**/{case}_*.nii.gz``.

    Files of ``others``, narrower templates, are not meant.
    """
    narrow = [re.sub(r"\(\?P=\w+\)", "[^/]+?", make_expression(each)) for each in sorted(others)]
    nameless = [re.sub(r"\(\?P<\w+>", "(?:", each) for each in narrow]
    refused = "".join(f"(?!(?:.+/)?{each}$)" for each in nameless)
    seen: set[str] = set()
    parts = []
    for part in re.split(r"({\w+}|\*\*/|\*)", template):
        if match := re.fullmatch(r"{(\w+)}", part):
            again = match[1] in seen
            seen.add(match[1])
            parts.append(f"(?P={match[1]})" if again else f"(?P<{match[1]}>[^/]+?)")
        else:
            parts.append({"**/": "(?:.+/)?", "*": "[^/]*"}.get(part, re.escape(part)))
    return refused + "".join(parts)


def _labels(labels: Sequence[str]) -> tuple[dict[str, int], dict[Any, int] | None]:
    """Label names and values, and the lookup, where the files have other values."""
    if not labels:
        raise ValueError("--labels is missing; name the labels, e.g. --labels tumour=any")
    values: dict[str, int] = {"background": 0}
    remap: dict[Any, int] = {0: 0}
    for number, each in enumerate(labels, 1):
        label, _, source = each.partition("=")
        values[label] = number
        if not re.fullmatch(rf"\d*|\d+-\d+|{ANY}", source):
            allowed = "NAME, NAME=VALUE, NAME=2-5, NAME=any"
            raise ValueError(f"--labels has {each!r}; allowed: {allowed}")
        is_range = "-" in source
        remap[OTHER if source == ANY else source if is_range else int(source or number)] = number
    return values, remap if any(key != value for key, value in remap.items()) else None
