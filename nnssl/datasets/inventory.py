"""What lies in a source folder, and which of it belongs together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

Groups = tuple[tuple[str, str], ...]


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


@dataclass(frozen=True)
class Candidate:
    """Files that share their named groups: one possible case.

    Paths are relative to the source folder; ``None`` stands for a file that was not found.
    """

    part: str
    groups: Groups
    images: tuple[str | None, ...]
    label: str | None

    @property
    def files(self) -> list[str]:
        """The files that exist."""
        return [path for path in (*self.images, self.label) if path is not None]

    def format(self, template: str) -> str:
        """Fill a template such as ``{patient}_frame{frame}``."""
        return template.format(**dict(self.groups))


@dataclass
class Inventory:
    """All files and folders below a source folder, relative to it, sorted."""

    root: Path
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path) -> Inventory:
        """Walk ``root``, following links; folders that cannot be read become problems."""
        inventory = cls(root)

        def unreadable(error: OSError) -> None:
            what = f"folder cannot be read ({error.strerror})"
            inventory.problems.append(Problem(str(error.filename), what))

        visited: set[str] = set()
        for folder, below, names in os.walk(root, followlinks=True, onerror=unreadable):
            real = os.path.realpath(folder)
            if real in visited:
                below.clear()
                continue
            visited.add(real)
            relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
            inventory.files += [str(relative / name) for name in names]
            inventory.folders.append(str(relative))
        inventory.files.sort()
        inventory.folders.sort()
        return inventory

    def below(self, folder: str) -> list[str]:
        """Files at any depth below a folder."""
        return [path for path in self.files if path.startswith(f"{folder}/")]


def find_candidates(
    inventory: Inventory, channels: list[str], label: str, test: str | None
) -> tuple[list[Candidate], list[Problem]]:
    """Bring images and labels together by their named groups.

    Args:
        inventory: The source folder.
        channels: Pattern of each image channel.
        label: Pattern of the label files.
        test: Regular expression of paths that belong to the test set.

    Returns:
        Candidates in the order of their named groups, and a problem for every file found twice.
    """
    problems: list[Problem] = []
    found = [_by_groups(inventory, pattern, test, problems) for pattern in [*channels, label]]
    keys = sorted({key for files in found for key in files})
    candidates = []
    for part, groups in keys:
        paths = [files.get((part, groups)) for files in found]
        candidates.append(Candidate(part, groups, tuple(paths[:-1]), paths[-1]))
    return candidates, problems


def _by_groups(
    inventory: Inventory, pattern: str, test: str | None, problems: list[Problem]
) -> dict[tuple[str, Groups], str]:
    compiled = re.compile(rf"(?:^|/){pattern}$")
    found: dict[tuple[str, Groups], str] = {}
    for path in inventory.files:
        if match := compiled.search(path):
            key = _part(inventory.root, path, test), tuple(sorted(match.groupdict().items()))
            if key in found:
                problems.append(Problem(path, f"is there twice, the other is {found[key]}"))
            found.setdefault(key, path)
    return found


def _part(root: Path, path: str, test: str | None) -> str:
    return "Ts" if test and re.search(test, f"{root.resolve().name}/{path}") else "Tr"
