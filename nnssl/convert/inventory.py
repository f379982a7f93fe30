"""What lies in a source folder, and which of it belongs together."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
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


def counted(problems: list[Problem]) -> str:
    """``1 problem``, ``2 problems``."""
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


class ConversionError(ValueError):
    """All problems of one source folder in one message."""

    def __init__(self, heading: str, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join([heading, *(f"  - {each}" for each in problems)]))


@dataclass(frozen=True)
class Candidate:
    """Files that share their named groups: one possible case.

    Paths are relative to the source folder; ``None`` stands for files that were not found.
    """

    part: str
    groups: Groups
    images: tuple[Files | None, ...]
    label: Files | None

    @property
    def files(self) -> list[str]:
        """The files that exist."""
        return [path for files in (*self.images, self.label) for path in files or ()]

    def format(self, template: str) -> str:
        """Fill a template such as ``{patient}_frame{frame}``; only safe characters stay."""
        filled = re.sub("_+", "_", template.format_map(_Blank(self.groups))).strip("_-")
        return re.sub(r"[^\w.+-]", "-", filled, flags=re.ASCII)


class _Blank(dict[str, str]):
    """Groups of a label that the image alone has are left blank."""

    def __missing__(self, key: str) -> str:
        return ""


@dataclass
class Inventory:
    """All files and folders below a source folder, relative to it, sorted.

    Hidden files (``._name`` of a Mac, ``.DS_Store``) are left out.
    """

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
            inventory.files += [str(relative / name) for name in names if name[0] != "."]
            inventory.folders.append(str(relative))
        inventory.files.sort()
        inventory.folders.sort()
        return inventory

    def below(self, folder: str) -> list[str]:
        """Files at any depth below a folder."""
        return [path for path in self.files if path.startswith(f"{folder}/")]
