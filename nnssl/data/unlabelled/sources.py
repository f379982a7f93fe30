"""Which files of a folder are images without labels: identifiers, channels, patients."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nnssl.convert.readers.dicom import is_dicom
from nnssl.convert.readers.pictures import ENDINGS as PICTURES
from nnssl.convert.sources import SLICE_FILE, Files, Inventory, Problem, make_safe

VOLUMES = (
    *(".nii.gz", ".nii", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".hdr"),
    *PICTURES,
)
SERIES = ".dcm"
CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class ImageSource:
    """Files of one image, or of one cine."""

    identifier: str  # stem of the file name without nnU-Net's channel suffix
    place: str  # path below the source folder (of the first channel; the folder of a series)
    patient: str  # key of the patient
    channels: tuple[Files, ...]  # files of each channel: one file, or the slices of a series

    @property
    def files(self) -> Files:
        return tuple(path for channel in self.channels for path in channel)

    def locate(self, root: Path) -> list[list[Path]]:
        """Files of each channel, below the source folder."""
        return [[root / path for path in channel] for channel in self.channels]


@dataclass(frozen=True)
class FileChoice:
    """Which files are taken, and how they name their patient.

    Attributes:
        endings: further file endings that can be read.
        files: regular expression that is searched for in paths below the folder; None: all.
        patient: regular expression with a group, searched for in paths below the folder; its first
            group (or the one named `patient`) is the key. None: the identifier is the key.
    """

    endings: tuple[str, ...] = ()
    files: str | None = None
    patient: str | None = None

    def __post_init__(self) -> None:
        for name, text in (("--files", self.files), ("--patient", self.patient)):
            try:
                groups = re.compile(text or "").groups
            except re.error as error:
                raise ValueError(f"{name}: {text!r} is no regular expression ({error})") from error
            if text and name == "--patient" and not groups:
                raise ValueError(
                    f"--patient: {text!r} has no group; put what names the patient in parentheses, "
                    r"for example --patient '(patient\d+)'"
                )


def find_sources(folder: Path, choice: FileChoice) -> tuple[list[ImageSource], list[Problem]]:
    """All images of a folder, at any depth, sorted by identifier; nothing is opened."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    inventory = Inventory.of(folder)
    known = sorted({*VOLUMES, *choice.endings, SERIES})
    pattern = choice.files or ""
    sources = _group([path for path in inventory.files if re.search(pattern, path)], known, folder)
    if not sources:
        raise ValueError(
            f"{folder} holds no image{f' that matches --files {pattern}' * bool(pattern)}; looked "
            f"for {', '.join(known)}"
        )
    sources = _name_twins(sources)
    problems = [*inventory.problems, *_find_twins(sources)]
    if choice.patient is None:
        return sources, problems
    named = [replace(each, patient=_find_patient(each, choice.patient)) for each in sources]
    unknown = f"has no patient by the pattern {choice.patient}"
    problems += [Problem(each.place, unknown) for each in named if not each.patient]
    return named, problems


def share(sources: Sequence[ImageSource], part: tuple[int, int]) -> list[ImageSource]:
    """Part k of n (from 1): the same images for the same folder, disjoint, together all."""
    number, count = part
    return list(sources[number - 1 :: count])


def _group(paths: Sequence[str], endings: Sequence[str], root: Path) -> list[ImageSource]:
    """Files with a known ending, by image: a DICOM series per folder, else by name and channel.

    `x_0001` is a channel of `x` where there is an `x_0000` too; other numbers belong to the name.
    """
    parts = {path: _split(path, endings) for path in paths}
    for path, (folder, name, ending) in parts.items():
        if not ending and SLICE_FILE.search(path) and _is_slice(root / path):
            parts[path] = folder, name, SERIES
    known = set(parts.values())
    groups: dict[tuple[PurePosixPath, str, str], list[str]] = defaultdict(list)
    for path, (parent, stem, ending) in parts.items():
        found = CHANNEL.fullmatch(stem)
        if ending == SERIES:
            stem = parent.name or root.name
        elif found and (parent, f"{found[1]}_0000", ending) in known:
            stem = found[1]
        if ending:
            groups[parent, stem, ending].append(path)
    sources = []
    for (parent, name, ending), files in groups.items():
        files.sort()
        if ending == SERIES:
            sources.append(ImageSource(name, str(parent), name, (tuple(files),)))
        else:
            sources.append(ImageSource(name, files[0], name, tuple((file,) for file in files)))
    return sorted(sources, key=lambda source: (source.identifier, source.place))


def _is_slice(path: Path) -> bool:
    """Whether a file without a known ending (``IM_0001``, ``1.2.840.113.5``, ``.IMA``) is DICOM."""
    try:
        return path.name != "DICOMDIR" and is_dicom(path)
    except OSError:
        return False


def _split(path: str, endings: Sequence[str]) -> tuple[PurePosixPath, str, str]:
    """Folder, stem, and the longest known ending in lower case; no ending if it is unknown."""
    folder, name = PurePosixPath(path).parent, PurePosixPath(path).name
    for ending in sorted(endings, key=len, reverse=True):
        if name.lower().endswith(ending) and len(name) > len(ending):
            return folder, name[: -len(ending)], ending
    return folder, name, ""


def _name_twins(sources: Sequence[ImageSource]) -> list[ImageSource]:
    """Images whose names are not their own are named by their path below the folder."""
    count = Counter(source.identifier for source in sources)
    named = []
    for source in sources:
        if count[source.identifier] > 1:
            folder = PurePosixPath(source.place).parent
            name = make_safe("_".join([*folder.parts, source.identifier]))
            source = replace(source, identifier=name, patient=name)
        named.append(source)
    return sorted(named, key=lambda source: (source.identifier, source.place))


def _find_patient(source: ImageSource, pattern: str) -> str:
    found = re.search(pattern, source.place)
    return (found and (found.groupdict().get("patient") or found[1])) or ""


def _find_twins(sources: Sequence[ImageSource]) -> list[Problem]:
    places: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        places[source.identifier].append(source.place)
    return [
        Problem(name, f"is there {len(found)} times: {', '.join(found)}; file names must differ")
        for name, found in places.items()
        if len(found) > 1
    ]
