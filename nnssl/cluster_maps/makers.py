"""What makers of dense targets are told about a run, and what they do for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.data.case_table import DataFolders, dense_target_folder
from nnssl.nnunet.images import image_file
from nnssl.objectives import DenseTargets


@dataclass(frozen=True)
class Image:
    """An image that has a map, or gets one."""

    identifier: str
    folder: Path | None = None  # of an image without label, see `Case`

    def map(self, maps: Path) -> Path:
        """File of its map among those of a fold."""
        return dense_target_folder(maps, self.folder) / f"{self.identifier}.b2nd"

    def is_mapped(self, maps: Path) -> bool:
        """Whether there is a map; that of an image without label must be the younger one."""
        made = self.map(maps)
        if self.folder is None or not made.is_file():
            return made.is_file()
        source = image_file(self.folder, self.identifier)
        return made.stat().st_mtime_ns >= source.stat().st_mtime_ns


@dataclass(frozen=True)
class TargetRun:
    """A pre-training run, as far as its dense targets depend on it."""

    folders: DataFolders  # where images are read, and maps written (`folders.dense_target(name)`)
    plans: Mapping[str, Any]
    configuration: str
    training: tuple[str, ...]  # identifiers of the training cases: nothing else may be learned from
    images: tuple[Image, ...]  # all that the run reads, without labels too


@dataclass(frozen=True)
class Maker:
    """Who makes dense targets of one kind."""

    # makes what a run lacks, before its first step, and logs it; every rank calls this at once, so
    # one works and the others wait
    make: Callable[[DenseTargets, TargetRun, Callable[[str], None]], None]
    # refuses, by a ValueError that tells the way out, maps that are missing or were made for
    # something else
    check: Callable[[DenseTargets, TargetRun], None]
    # what maps that are there were made by: a run that learned from others does not go on with them
    describe: Callable[[DenseTargets, TargetRun], Mapping[str, Any]] = lambda wanted, run: {}
