"""One pool of images without labels: where it goes, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json
from nnssl.convert.sources import Problem
from nnssl.data.unlabelled.job import CheckedImage, Plan
from nnssl.data.unlabelled.records import UNLABELLED, PoolImage, read_manifest
from nnssl.data.unlabelled.sources import FileChoice, ImageSource
from nnssl.nnunet.cases import CASES_FILE

NOT_IN_NAMES = set('/\\: \t"')


@dataclass(frozen=True)
class UnlabelledTask:
    """One pool of images to preprocess.

    Attributes:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        source: folder of the images.
        name: of the pool.
        plan: plans, configuration, channels.
        choice: which files, and how they name their patient.
        part: (k, n): the k-th of n shares, from 1.
    """

    dataset: Path
    source: Path
    name: str
    plan: Plan
    choice: FileChoice
    part: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        number, count = self.part
        if not 1 <= number <= count:
            raise ValueError(f"--part: found {number}/{count}, allowed are 1/{count} to n/{count}")
        if not self.name or self.name[0] in "._" or NOT_IN_NAMES & set(self.name):
            raise ValueError(
                f"--name: found {self.name!r}, allowed is a plain folder name that starts with a "
                "letter or digit"
            )

    @property
    def own(self) -> Path:
        """nnssl's folder of the configuration."""
        return own_folder(self.dataset, self.plan)

    @property
    def pool(self) -> Path:
        return self.own / UNLABELLED / self.name


def own_folder(dataset: Path, plan: Plan) -> Path:
    """nnssl's own folder of a configuration; nothing is ever written into nnU-Net's."""
    return dataset / "nnssl" / str(plan.configured.data_identifier)


def check_manifest(task: UnlabelledTask) -> None:
    """Refuse a pool that was made from another folder or by other plans.

    Raises:
        ValueError: with the way out.
    """
    known = read_manifest(task.pool)
    if not known:
        return
    anew = f"remove it (--remove {task.name}) to make it anew"
    if known["voxels"] != task.plan.voxels:
        raise ValueError(
            f"{task.pool} was preprocessed by plans that have changed since (spacing, "
            f"normalisation, resampling, reader or transposition of {known['plans']}, "
            f"{known['configuration']}); {anew}"
        )
    if known["source"] != str(task.source.resolve()):
        raise ValueError(
            f"{task.pool} holds images of {known['source']}, not of {task.source.resolve()}; give "
            f"another --name, or {anew}"
        )


def collisions(
    task: UnlabelledTask,
    sources: Sequence[ImageSource],
    checked: Sequence[CheckedImage],
    records: Sequence[PoolImage],
) -> list[Problem]:
    """Identifiers that the dataset, another image or another frame has.

    Args:
        task: the pool.
        sources: all images of the folder.
        checked: those that were looked at, with their frames.
        records: images that are in the pool.
    """
    places = {source.place for source in sources}
    named = [(record.identifier, record.place) for record in records if record.place in places]
    named += [(name, each.source.place) for each in checked for name in each.names.values()]
    owners: dict[str, str] = {}
    taken, problems = dataset_cases(task), {}
    for name, place in named:
        if name in taken:
            what = f"{place} would have the identifier of a case of {task.dataset.name}"
            problems[name] = Problem(name, f"{what}; leave it out (--files) or rename it")
        elif owners.setdefault(name, place) != place:
            problems[name] = Problem(name, f"is there twice: {owners[name]} and {place}")
    return list(problems.values())


def dataset_cases(task: UnlabelledTask) -> set[str]:
    """Identifiers of the dataset: of its records, and of its preprocessed cases."""
    record = task.dataset / CASES_FILE
    known: Any = read_json(record).get("cases", {}) if record.is_file() else {}
    folder = task.dataset / str(task.plan.configured.data_identifier)
    return {*known, *(path.stem for path in folder.glob("*") if path.stem[0] != ".")}
