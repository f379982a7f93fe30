"""Files that match the patterns of a spec, brought together by their named groups."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nnssl.convert.inventory import Candidate, Files, Groups, Inventory, Problem

FRAME = "frame"  # named group: number of a time frame
SLICE = "slice"  # named group: files that differ in it only are slices of one volume
SLICE_FILE = re.compile(r"(?i)(\.(dcm|ima|png|jpe?g|tiff?|bmp|\d+)|/[^./]+)$")
Found = dict[tuple[str, Groups], Files]


def find_candidates(
    inventory: Inventory, channels: Sequence[str], label: str | None, test: str | None
) -> tuple[list[Candidate], list[Problem]]:
    """Bring images and labels together by their named groups.

    A label pattern may lack groups of the image patterns: that label then belongs to several
    images.

    Args:
        inventory: The source folder.
        channels: Pattern of each image channel.
        label: Pattern of the label files; ``None`` where there are none.
        test: Regular expression of paths that belong to the test set.

    Returns:
        Candidates in the order of their named groups, and a problem for every file found twice.
    """
    problems: list[Problem] = []
    patterns = dict.fromkeys(channels)
    by_pattern = {each: _by_groups(inventory, each, test, problems) for each in patterns}
    images = [by_pattern[pattern] for pattern in channels]
    labels = _by_groups(inventory, label, test, problems) if label else {}
    names = set(re.compile(label or "").groupindex) - {SLICE}
    used: set[tuple[str, Groups]] = set()
    candidates = []
    for part, groups in sorted({key for files in images for key in files}):
        key = part, tuple((name, value) for name, value in groups if name in names)
        used.add(key)
        files = tuple(each.get((part, groups)) for each in images)
        candidates.append(Candidate(part, groups, files, labels.get(key)))
    orphans = sorted(set(labels) - used)
    none = (None,) * len(images)
    return candidates + [Candidate(*key, none, labels[key]) for key in orphans], problems


def matching(pattern: str, path: str) -> re.Match[str] | None:
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
) -> Found:
    found: dict[tuple[str, Groups], list[str]] = defaultdict(list)
    owners: dict[tuple[object, ...], str] = {}
    twice: dict[str, str] = {}
    for path in inventory.files:
        if match := matching(pattern, path):
            named = {name: value or "" for name, value in match.groupdict().items()}
            slot = named.pop(SLICE, "")
            key = _part(inventory.root, path, test), tuple(sorted(named.items()))
            owner = path.rpartition("/")[0] if pattern.endswith("/") else path
            first = owners.setdefault((*key, slot), owner)
            if first == owner:
                found[key].append(path)
            else:
                twice[owner] = first
    what = "is there twice, the other is"
    problems += [Problem(path, f"{what} {first}") for path, first in twice.items()]
    return {key: tuple(files) for key, files in found.items()}


def _part(root: Path, path: str, test: str | None) -> str:
    return "Ts" if test and re.search(test, f"{root.resolve().name}/{path}") else "Tr"
