"""MONAI datalists: a JSON file names the images and labels of each case, whatever their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nnssl.common.files import read_json
from nnssl.convert.private import make_own_spec, split_channels
from nnssl.convert.sources import Candidate, Files, Problem
from nnssl.convert.spec import DatasetSpec

PARTS = {"training": "Tr", "validation": "Tr", "testing": "Ts", "test": "Ts"}
LAYOUT = (
    '  dataset.json     {"training": [{"image": "a/1.nii.gz", "label": "b/x.nii.gz"}, ...], '
    '"testing": [...]}\n  paths are relative to SOURCE; "image" may list a file for each channel'
)


def make_datalist_spec(
    name: str,
    images: Sequence[str],
    label: str | None = None,
    labels: Sequence[str] = (),
    **entries: Any,
) -> DatasetSpec:
    """A spec for the cases of a datalist; each case is a patient of its own.

    Args:
        name: Name of the dataset.
        images: The channels and the file, once: ``T1,FLAIR=dataset.json``.
        label: Must be None: the file names the labels.
        labels: Names of the labels, as for any private collection; none: images only.
        entries: Further entries of the spec.

    Raises:
        ValueError: Not one file, or another entry is impossible.
    """
    channels = split_channels(images, "CT=dataset.json")
    if len(files := set(channels.values())) != 1 or label:
        raise ValueError(
            f"datalist needs --images CHANNEL[,CHANNEL]=FILE.json once, and no --label; found "
            f"{list(images)} and {label}"
        )
    anything = "(?P<case>.+)"
    return make_own_spec(
        name=name,
        channels=dict.fromkeys(channels, anything),
        case="{case}",
        patient="{case}",
        layout=LAYOUT,
        label=anything if labels else None,
        labels=labels,
        datalist=files.pop(),
        **entries,
    )


def read_datalist(spec: DatasetSpec, source: Path) -> tuple[list[Candidate], list[Problem]]:
    """Possible cases that the datalist names, and the files that are not there.

    Raises:
        ValueError: It is no datalist.
    """
    file = source / str(spec.datalist)
    content = read_json(file) if file.is_file() else {}
    try:
        listed = [
            (part, _list_files(entry["image"]), entry.get("label") if spec.label else None)
            for key, part in PARTS.items()
            for entry in content.get(key, ())
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no datalist ({error!r})\n{spec.guidance}") from error
    stems = Counter(_stem(files[0]) for _, files, _ in listed)
    candidates, problems = [], []
    for part, files, label in listed:
        stem = _stem(files[0])
        own = stem if stems[stem] == 1 else _stem(files[0].replace("/", "_"))
        for path in [*files, *([label] if label else [])]:
            if PurePosixPath(path).is_absolute() or not (source / path).is_file():
                problems.append(Problem(own, f"{path} is not there, below {source}"))
        each = files * (len(spec.channels) if len(files) == 1 else 1)
        if len(each) != len(spec.channels):
            problems.append(Problem(own, f"has {len(files)} files, not {len(spec.channels)}"))
            continue
        images: tuple[Files, ...] = tuple((path,) for path in each)
        candidates.append(Candidate(part, (("case", own),), images, (label,) if label else None))
    return candidates, problems


def _list_files(image: Any) -> list[str]:
    """One file or several, without a leading ``./``."""
    return [str(PurePosixPath(path)) for path in ([image] if isinstance(image, str) else image)]


def _stem(path: str) -> str:
    return PurePosixPath(path).name.partition(".nii")[0]
