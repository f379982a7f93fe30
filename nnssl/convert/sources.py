"""What lies in a source folder, and which files belong together."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

Groups = tuple[tuple[str, str], ...]
Files = tuple[str, ...]  # what one volume is made of: a file, or the slices of a stack


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the source: where, and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class ConversionError(ValueError):
    """All problems of one source folder in one message."""

    def __init__(self, heading: str, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join([heading, *(f"  - {each}" for each in problems)]))


def refuse(problems: list[Problem], where: str) -> None:
    """Raises a ConversionError if there are problems; ``where`` such as ``in /data/ACDC``."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConversionError(f"{count} {where}; nothing was written:", problems)


@dataclass(frozen=True)
class Candidate:
    """Files that share their named groups: one possible case.

    Paths are relative to the source folder; ``None`` stands for files that were not found, an empty
    name for a missing one of several masks.
    """

    part: str
    groups: Groups
    images: tuple[Files | None, ...]
    label: Files | None

    @property
    def files(self) -> list[str]:
        """The files that exist."""
        return [path for files in (*self.images, self.label) for path in files or () if path]

    def format(self, template: str) -> str:
        """Fill a template such as ``{patient}_frame{frame}``; only safe characters stay."""
        return make_safe(re.sub("_+", "_", self.fill(template)).strip("_-"))

    def fill(self, template: str) -> str:
        """Fill a template with the groups as they are; a label may lack groups of its images."""
        return template.format_map(defaultdict(str, self.groups))


def make_safe(name: str) -> str:
    """A name for files: letters of any script (composed, so that equal ones are), digits, _.+-"""
    return re.sub(r"[^\w.+-]", "-", unicodedata.normalize("NFC", name))


@dataclass
class Inventory:
    """All files and folders below a source folder, relative to it, sorted.

    Hidden files and folders, and what a Mac puts into archives (``__MACOSX``), are left out.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @cached_property
    def known(self) -> frozenset[str]:
        """The files, to look one up."""
        return frozenset(self.files)

    @classmethod
    def of(cls, root: Path) -> Inventory:
        """Walk ``root``, following links; folders that cannot be read become problems."""
        inventory, visited = cls(root), set[str]()

        def unreadable(error: OSError) -> None:
            what = f"folder cannot be read ({error.strerror})"
            inventory.problems.append(Problem(str(error.filename), what))

        for folder, below, names in os.walk(root, followlinks=True, onerror=unreadable):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
            inventory.files += [str(relative / name) for name in names if name[0] != "."]
            inventory.folders.append(str(relative))
            below[:] = [name for name in below if name[0] != "." and name != "__MACOSX"]
        inventory.files.sort()
        inventory.folders.sort()
        return inventory


FRAME = "frame"  # named group: number of a time frame
SLICE = "slice"  # named group: files that differ in it only are slices of one volume
SLICE_FILE = re.compile(r"(?i)(\.(dcm|ima|png|jpe?g|tiff?|bmp|\d+)|/[^./]+)$")
Key = tuple[str, Groups]


def find_candidates(
    inventory: Inventory,
    channels: Sequence[str],
    labels: Sequence[str],
    test: str | None,
) -> tuple[list[Candidate], list[Problem]]:
    """Bring images and labels together by their named groups.

    A label pattern may lack groups of the image patterns: that label then belongs to several
    images.

    Args:
        inventory: The source folder.
        channels: Pattern of the files of each.
        labels: Pattern of the label files, or of the masks of each structure.
        test: Regular expression of paths that belong to the test set.

    Returns:
        Candidates in the order of their named groups, and a problem for every file found twice.
    """
    problems: list[Problem] = []
    patterns = dict.fromkeys([*channels, *labels])
    found = {each: _by_groups(inventory, each, test, problems) for each in patterns}
    images = [found[pattern] for pattern in channels]
    drawn = _join([found[pattern] for pattern in labels])
    names = set(re.compile(labels[0] if labels else "").groupindex) - {SLICE}
    used: set[Key] = set()
    candidates = []
    for part, groups in sorted({key for files in images for key in files}):
        key = part, tuple((name, value) for name, value in groups if name in names)
        used.add(key)
        files = tuple(each.get((part, groups)) for each in images)
        candidates.append(Candidate(part, groups, files, drawn.get(key)))
    orphans = sorted(set(drawn) - used)
    none = (None,) * len(images)
    return candidates + [Candidate(*key, none, drawn[key]) for key in orphans], problems


def _join(masks: Sequence[dict[Key, Files]]) -> dict[Key, Files]:
    """Masks of one case, one after the other; an empty name stands for a missing one of several."""
    if len(masks) < 2:
        return masks[0] if masks else {}
    keys = {key for each in masks for key in each}
    return {key: tuple(file for each in masks for file in each.get(key, ("",))) for key in keys}


def match_end(pattern: str, path: str) -> re.Match[str] | None:
    """Match the end of a path, from a path component on.

    A pattern ``.../`` matches the folder of files that may be slices: pictures, ``.dcm``, ``.ima``,
    and names without an ending (``IM_0001``, ``1.2.840.113``).
    """
    if pattern.endswith("/"):
        if not SLICE_FILE.search(path):
            return None
        path = path.rpartition("/")[0] + "/"
    return re.search(rf"(?:^|/){pattern}$", path)


def _by_groups(
    inventory: Inventory, pattern: str, test: str | None, problems: list[Problem]
) -> dict[Key, Files]:
    home = inventory.root.resolve().name
    found: dict[Key, list[str]] = defaultdict(list)
    owners: dict[tuple[object, ...], str] = {}
    twice: dict[str, str] = {}
    for path in inventory.files:
        if match := match_end(pattern, path):
            groups = match.groupdict().items()
            named = {name: unicodedata.normalize("NFC", value or "") for name, value in groups}
            slot = named.pop(SLICE, "")
            part = "Ts" if test and re.search(test, f"{home}/{path}") else "Tr"
            key = part, tuple(sorted(named.items()))
            owner = path.rpartition("/")[0] if pattern.endswith("/") else path
            first = owners.setdefault((*key, slot), owner)
            if first == owner:
                found[key].append(path)
            else:
                twice[owner] = first
    what = "is there twice, the other is"
    problems += [Problem(path, f"{what} {first}") for path, first in twice.items()]
    return {key: tuple(files) for key, files in found.items()}
