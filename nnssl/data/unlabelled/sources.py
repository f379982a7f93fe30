"""Which files of a folder are images without labels: identifiers, channels, patients."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nnssl.convert.readers.pictures import ENDINGS as PICTURES
from nnssl.convert.sources import Files, Inventory, Problem

VOLUMES = (
    *(".nii.gz", ".nii", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".hdr"),
    *PICTURES,
)
SERIES = ".dcm"
CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class ImageSource:
    """Files of one image, or of one cine.

    Attributes:
        identifier: stem of the file name without nnU-Net's channel suffix.
        place: path below the source folder (of the first channel; the folder of a series).
        patient: key of the patient.
        channels: files of each channel: one file, or the slices of a series.
    """

    identifier: str
    place: str
    patient: str
    channels: tuple[Files, ...]

    @property
    def files(self) -> Files:
        return tuple(path for channel in self.channels for path in channel)


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
    """All images of a folder, sorted by identifier; nothing is opened.

    Args:
        folder: The images, at any depth.
        choice: Which of them.

    Raises:
        ValueError: It is no folder, or holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    inventory = Inventory.of(folder)
    wanted = [path for path in inventory.files if _taken(path, choice)]
    groups = {**_volumes(wanted, choice.endings), **dict(_series(wanted, folder.name))}
    if not groups:
        raise ValueError(
            f"{folder} holds no image{f' that matches --files {choice.files}' * bool(choice.files)}"
            f"; looked for {', '.join(sorted({*VOLUMES, *choice.endings, SERIES}))}"
        )
    problems = list(inventory.problems)
    sources = [
        ImageSource(name, place, _patient(name, place, choice, problems), channels)
        for (name, place), channels in sorted(groups.items())
    ]
    return sources, problems + _twice(sources)


def share(sources: Sequence[ImageSource], part: tuple[int, int]) -> list[ImageSource]:
    """Part k of n (from 1): the same images for the same folder, disjoint, together all."""
    number, count = part
    return list(sources[number - 1 :: count])


def stem_and_ending(path: str, endings: Collection[str]) -> tuple[str, str]:
    """File name without its ending, and the ending in lower case; no ending if it is unknown."""
    name = PurePosixPath(path).name
    for ending in sorted(endings, key=len, reverse=True):
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], ending
    return name, ""


def _taken(path: str, choice: FileChoice) -> bool:
    known = (*VOLUMES, *choice.endings, SERIES)
    matches = choice.files is None or re.search(choice.files, path) is not None
    return matches and bool(stem_and_ending(path, known)[1])


def _volumes(
    paths: Sequence[str], endings: Sequence[str]
) -> dict[tuple[str, str], tuple[Files, ...]]:
    """(identifier, place) -> channels, of all but DICOM."""
    known = (*VOLUMES, *endings)
    stems = {p: (str(PurePosixPath(p).parent), *stem_and_ending(p, known)) for p in paths}
    stems = {p: parts for p, parts in stems.items() if parts[2]}
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    names = set(stems.values())
    for path, (parent, stem, ending) in stems.items():
        groups[parent, _without_channel(parent, stem, ending, names), ending].append(path)
    return {
        (name, paths[0]): tuple((path,) for path in paths)
        for (_, name, _), paths in ((key, sorted(group)) for key, group in groups.items())
    }


def _without_channel(
    parent: str, stem: str, ending: str, known: Collection[tuple[str, str, str]]
) -> str:
    """`x` of `x_0001` where there is an `x_0000` too; other numbers belong to the name."""
    found = CHANNEL.fullmatch(stem)
    if found and (parent, f"{found[1]}_0000", ending) in known:
        return found[1]
    return stem


def _series(paths: Sequence[str], root: str) -> Iterator[tuple[tuple[str, str], tuple[Files, ...]]]:
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if path.lower().endswith(SERIES):
            folders[str(PurePosixPath(path).parent)].append(path)
    for place, files in folders.items():
        yield (PurePosixPath(place).name or root, place), (tuple(sorted(files)),)


def _patient(name: str, place: str, choice: FileChoice, problems: list[Problem]) -> str:
    if choice.patient is None:
        return name
    found = re.search(choice.patient, place)
    key = found and (found.groupdict().get("patient") or found[1])
    if not key:
        problems.append(Problem(place, f"has no patient by the pattern {choice.patient}"))
    return str(key)


def _twice(sources: Sequence[ImageSource]) -> list[Problem]:
    places: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        places[source.identifier].append(source.place)
    return [
        Problem(name, f"is there {len(found)} times: {', '.join(found)}; file names must differ")
        for name, found in places.items()
        if len(found) > 1
    ]
