"""A collection of images without labels beside a dataset: check everything, then write."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nnssl.common.files import TEMPORARY, write_json
from nnssl.common.parallel import for_each
from nnssl.convert.sources import Problem, refuse
from nnssl.data.unlabelled.job import (
    CheckedImage,
    PreprocessingPlan,
    check_source,
    stamp_files,
    write_images,
)
from nnssl.data.unlabelled.records import (
    MANIFEST,
    UNLABELLED,
    UnlabelledImage,
    find_collections,
    is_there,
    read_manifest,
    read_records,
    record_file,
    write_image_record,
)
from nnssl.data.unlabelled.sources import FileChoice, ImageSource, find_sources, share
from nnssl.nnunet.cases import read_all_cases
from nnssl.nnunet.images import image_file
from nnssl.nnunet.paths import check_name, own_folder

STALE = 3600  # seconds after which what an interrupted run left is thrown away


@dataclass(frozen=True)
class UnlabelledTask:
    """One collection to preprocess."""

    dataset: Path  # `nnUNet_preprocessed/DatasetXXX_NAME`
    source: Path  # folder of the images
    name: str
    plan: PreprocessingPlan
    choice: FileChoice  # which files, and how they name their patient
    part: tuple[int, int] = (1, 1)  # (k, n): the k-th of n shares, from 1

    def __post_init__(self) -> None:
        number, count = self.part
        if not 1 <= number <= count:
            raise ValueError(f"--part: found {number}/{count}, allowed are 1/{count} to n/{count}")
        check_name(self.name, "--name")

    @property
    def preprocessed(self) -> Path:
        """nnU-Net's folder of the configuration."""
        return self.dataset / self.plan.data_identifier

    @property
    def own(self) -> Path:
        """nnssl's folder of the configuration."""
        return own_folder(self.preprocessed)

    @property
    def folder(self) -> Path:
        """Where the collection lies."""
        return self.own / UNLABELLED / self.name


@dataclass(frozen=True)
class PreprocessingOutcome:
    """What a run did."""

    written: int  # images preprocessed now
    kept: int  # images of this share that were there already
    gone: int  # images whose source is not in the folder any more; they stay
    patients: int  # number of patients of this share


def preprocess_unlabelled(task: UnlabelledTask, workers: int) -> PreprocessingOutcome:
    """Preprocess what is missing or has changed; nothing is written before all is checked.

    Raises:
        ConversionError: something is wrong with the images; every bad one is named.
        ValueError: the collection was made from another folder or by other plans.
    """
    sources, problems = find_sources(task.source, task.choice)
    _check_manifest(task)
    records = read_records(task.folder)
    mine = share(sources, task.part)
    checked = _find_untouched(task, mine, records)
    places = {each.source.place for each in checked}
    others = [source for source in mine if source.place not in places]
    check = partial(check_source, root=task.source, plan=task.plan)
    checked += for_each(check, others, workers, "check")
    problems += [problem for each in checked for problem in each.problems]
    problems += _find_collisions(task, sources, checked, records)
    refuse(problems, f"in {task.source}")
    _prepare(task)
    by_name = {record.identifier: record for record in records}
    jobs, kept = [], 0
    for each in checked:
        named = [by_name[name] for name in each.names.values() if name in by_name]
        same = [record for record in named if _is_same(task, record, each)]
        _update_records(task, same, each)
        kept += len(same)
        there = {record.identifier for record in same}
        if missing := [number for number, name in each.names.items() if name not in there]:
            jobs.append((each, missing))
    _drop_lost_frames(task, checked, records)
    for_each(partial(_write, task=task), jobs, workers, "preprocess")
    places = {source.place for source in sources}
    made = {name for each, _ in jobs for name in each.names.values()}
    return PreprocessingOutcome(
        written=sum(len(numbers) for _, numbers in jobs),
        kept=kept,
        gone=sum(r.place not in places and r.identifier not in made for r in records),
        patients=len({source.patient for source in mine}),
    )


def remove_collection(own: Path, name: str) -> Path:
    """Delete a collection, and the dense targets (cluster maps) that were made from its images."""
    found = find_collections(own)
    if name not in found:
        raise ValueError(
            f"--remove: no collection {name!r} in {own / UNLABELLED}; there are {[*found]}"
        )
    for maps in own.glob("*/fold_*"):  # joined, as a name may hold what glob takes for a pattern
        if (derived := maps / UNLABELLED / name).is_dir():
            shutil.rmtree(derived)
    (found[name] / MANIFEST).unlink()  # without it there is no collection, should this be stopped
    shutil.rmtree(found[name])
    return found[name]


def _write(job: tuple[CheckedImage, list[int]], task: UnlabelledTask) -> None:
    write_images(job[0], set(job[1]), task.source, task.folder, task.plan)


def _check_manifest(task: UnlabelledTask) -> None:
    """Refuse a collection that was made from another folder or by other plans."""
    known = read_manifest(task.folder)
    if not known:
        return
    anew = f"remove it (--remove {task.name}) to make it anew"
    if known["voxels"] != task.plan.voxels:
        raise ValueError(
            f"{task.folder} was preprocessed by plans that have changed since (spacing, "
            f"normalisation, resampling, reader or transposition of {known['plans']}, "
            f"{known['configuration']}); {anew}"
        )
    if known["source"] != str(task.source.resolve()):
        raise ValueError(
            f"{task.folder} holds images of {known['source']}, not of {task.source.resolve()}; "
            f"give another --name, or {anew}"
        )


def _find_collisions(
    task: UnlabelledTask,
    sources: Sequence[ImageSource],
    checked: Sequence[CheckedImage],
    records: Sequence[UnlabelledImage],
) -> list[Problem]:
    """Identifiers that the dataset, another image or another frame has."""
    places = {source.place for source in sources}
    named = [(record.identifier, record.place) for record in records if record.place in places]
    named += [(name, each.source.place) for each in checked for name in each.names.values()]
    of_files = {path.stem for path in task.preprocessed.glob("*") if path.stem[0] != "."}
    taken = of_files | read_all_cases(task.dataset).keys()
    owners: dict[str, str] = {}
    problems = {}
    for name, place in named:
        if name in taken:
            what = f"{place} would have the identifier of a case of {task.dataset.name}"
            problems[name] = Problem(name, f"{what}; leave it out (--files) or rename it")
        elif owners.setdefault(name, place) != place:
            problems[name] = Problem(name, f"is there twice: {owners[name]} and {place}")
    return list(problems.values())


def _prepare(task: UnlabelledTask) -> None:
    """Make the folder, throw away what interrupted runs left, write the manifest."""
    task.folder.mkdir(parents=True, exist_ok=True)
    for left in (*task.folder.glob(f"{TEMPORARY}*"), *task.folder.glob(f"*/{TEMPORARY}*")):
        try:
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except FileNotFoundError:  # another part was quicker
            continue
    content = {
        "name": task.name,
        "source": str(task.source.resolve()),
        "plans": task.plan.plans["plans_name"],
        "configuration": task.plan.configuration,
        "voxels": task.plan.voxels,
        "version": 1,
    }
    if read_manifest(task.folder) != content:
        write_json(task.folder / MANIFEST, content)


def _find_untouched(
    task: UnlabelledTask, sources: Sequence[ImageSource], records: Sequence[UnlabelledImage]
) -> list[CheckedImage]:
    """Sources whose images are all there, and whose files have not been touched; none is opened."""
    by_place: dict[str, list[UnlabelledImage]] = defaultdict(list)
    for record in records:
        by_place[record.place].append(record)
    untouched = []
    for source in sources:
        if found := by_place.get(source.place):
            known = CheckedImage(source, found[0].frames, found[0].files)
            now = [file.stamp for file in stamp_files(task.source, source)]
            stamps = [[file.stamp for file in record.files] for record in found]
            there = {record.identifier for record in found if _is_same(task, record, known)}
            if there == set(known.names.values()) and all(each == now for each in stamps):
                untouched.append(known)
    return untouched


def _is_same(task: UnlabelledTask, record: UnlabelledImage, checked: CheckedImage) -> bool:
    before, now = ([file.sha256 for file in each.files] for each in (record, checked))
    is_current = record.voxels == task.plan.voxels and is_there(task.folder, record)
    return before == now and is_current


def _drop_lost_frames(
    task: UnlabelledTask, checked: Sequence[CheckedImage], records: Sequence[UnlabelledImage]
) -> None:
    """Images of frames that a source does not have any more."""
    places = {each.source.place for each in checked}
    names = {name for each in checked for name in each.names.values()}
    for record in records:
        if record.place in places and record.identifier not in names:
            record_file(task.folder, record.identifier).unlink(missing_ok=True)
            if is_there(task.folder, record):
                image_file(task.folder, record.identifier).unlink()


def _update_records(
    task: UnlabelledTask, images: Sequence[UnlabelledImage], checked: CheckedImage
) -> None:
    """Images stay; their records follow another pattern for patients, or another time of files."""
    source = checked.source
    for image in images:
        now = replace(image, place=source.place, patient=source.patient, files=checked.files)
        if now != image:
            write_image_record(task.folder, now)
