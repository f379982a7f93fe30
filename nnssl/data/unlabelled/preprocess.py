"""Images without labels, preprocessed beside a dataset: check everything, then write."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnssl.common.files import TEMPORARY, write_json
from nnssl.common.parallel import for_each
from nnssl.convert.sources import ConversionError
from nnssl.data.unlabelled.job import CheckedImage, check_source, frame_names, stamps, write_images
from nnssl.data.unlabelled.records import (
    MANIFEST,
    UNLABELLED,
    PoolImage,
    SourceFile,
    pools,
    read_manifest,
    read_records,
    record_file,
    write_image_record,
)
from nnssl.data.unlabelled.sources import ImageSource, find_sources, share
from nnssl.data.unlabelled.task import UnlabelledTask, check_manifest, collisions
from nnssl.nnunet.images import CaseError, image_file

STALE = 3600  # seconds after which what an interrupted run left is thrown away


@dataclass(frozen=True)
class PreprocessingOutcome:
    """What a run did.

    Attributes:
        written: images preprocessed now.
        kept: images of this share that were there already.
        gone: images whose source is not in the folder any more; they stay.
        patients: number of patients of this share.
    """

    written: int
    kept: int
    gone: int
    patients: int


def preprocess_unlabelled(task: UnlabelledTask, workers: int) -> PreprocessingOutcome:
    """Preprocess what is missing or has changed; nothing is written before all is checked.

    Args:
        task: the images and how they are preprocessed.
        workers: processes.

    Raises:
        ConversionError: something is wrong with the images; every bad one is named.
        ValueError: the pool was made from another folder or by other plans.
    """
    sources, problems = find_sources(task.source, task.choice)
    check_manifest(task)
    records = read_records(task.pool)
    mine = share(sources, task.part)
    done, open_sources = _parted(task, mine, records)
    checked = for_each(
        partial(check_source, root=task.source, plan=task.plan), open_sources, workers, "check"
    )
    problems += [problem for each in checked for problem in each.problems]
    problems += collisions(task, sources, checked, records)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConversionError(f"{count} in {task.source}; nothing was written:", problems)
    return _write(task, sources, mine, done, checked, records, workers)


def _write(
    task: UnlabelledTask,
    sources: Sequence[ImageSource],
    mine: Sequence[ImageSource],
    done: Sequence[PoolImage],
    checked: Sequence[CheckedImage],
    records: Sequence[PoolImage],
    workers: int,
) -> PreprocessingOutcome:
    _prepare(task)
    by_name = {record.identifier: record for record in records}
    by_place = {source.place: source for source in mine}
    for record in done:
        _keep(task.pool, [record], by_place[record.place], None)
    jobs, kept = [], len(done)
    for each in checked:
        same = [by_name[n] for n in each.names.values() if _same(task, by_name.get(n), each)]
        _keep(task.pool, same, each.source, each.files)
        kept += len(same)
        _drop(task.pool, each, records)
        there = {record.identifier for record in same}
        missing = [number for number, name in each.names.items() if name not in there]
        jobs += [(each, missing)] if missing else []
    for_each(partial(_write_one, task=task), jobs, workers, "preprocess")
    places = {source.place for source in sources}
    made = {name for each, _ in jobs for name in each.names.values()}
    gone = sum(r.place not in places and r.identifier not in made for r in records)
    written = sum(len(numbers) for _, numbers in jobs)
    return PreprocessingOutcome(written, kept, gone, len({source.patient for source in mine}))


def _write_one(job: tuple[CheckedImage, list[int]], task: UnlabelledTask) -> None:
    write_images(job[0], set(job[1]), task.source, task.pool, task.plan)


def remove(own: Path, name: str) -> Path:
    """Delete a pool, and the dense targets (cluster maps) that were made from its images.

    Args:
        own: see `own_folder`.
        name: of the pool.

    Raises:
        ValueError: there is none of this name.
    """
    found = pools(own)
    if name not in found:
        raise ValueError(f"--remove: no pool {name!r} in {own / UNLABELLED}; there are {[*found]}")
    for maps in own.glob("*/fold_*"):  # joined, as a name may hold what glob takes for a pattern
        if (derived := maps / UNLABELLED / name).is_dir():
            shutil.rmtree(derived)
    (found[name] / MANIFEST).unlink()  # a pool without manifest is none, should this be interrupted
    shutil.rmtree(found[name])
    return found[name]


def complete(pool: Path) -> list[PoolImage]:
    """Records whose image is there."""
    return [record for record in read_records(pool) if _is_there(pool, record)]


def _prepare(task: UnlabelledTask) -> None:
    task.pool.mkdir(parents=True, exist_ok=True)
    for left in (*task.pool.glob(f"{TEMPORARY}*"), *task.pool.glob(f"*/{TEMPORARY}*")):
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
    if read_manifest(task.pool) != content:
        write_json(task.pool / MANIFEST, content)


def _parted(
    task: UnlabelledTask, sources: Sequence[ImageSource], records: Sequence[PoolImage]
) -> tuple[list[PoolImage], list[ImageSource]]:
    """Images that are there and whose files have not been touched; sources that must be looked at.

    Nothing is opened: the records know how many frames a source has.
    """
    by_place: dict[str, list[PoolImage]] = defaultdict(list)
    for record in records:
        by_place[record.place].append(record)
    done: list[PoolImage] = []
    left: list[ImageSource] = []
    for source in sources:
        found = by_place[source.place]
        if found and _untouched(task, source, found):
            done += found
        else:
            left.append(source)
    return done, left


def _untouched(task: UnlabelledTask, source: ImageSource, found: Sequence[PoolImage]) -> bool:
    expected = set(frame_names(source.identifier, found[0].frames).values())
    now = [file.stamp for file in stamps(task.source, source)]
    return {record.identifier for record in found} == expected and all(
        [file.stamp for file in record.files] == now
        and record.voxels == task.plan.voxels
        and _is_there(task.pool, record)
        for record in found
    )


def _same(task: UnlabelledTask, record: PoolImage | None, checked: CheckedImage) -> bool:
    """Whether the image of a record was made from these very files."""
    return (
        record is not None
        and [f.sha256 for f in record.files] == [f.sha256 for f in checked.files]
        and record.voxels == task.plan.voxels
        and _is_there(task.pool, record)
    )


def _is_there(pool: Path, record: PoolImage) -> bool:
    try:
        return image_file(pool, record.identifier).is_file()
    except CaseError:
        return False


def _drop(pool: Path, checked: CheckedImage, records: Sequence[PoolImage]) -> None:
    """Images of frames that a source does not have any more."""
    names = set(checked.names.values())
    for record in records:
        if record.place == checked.source.place and record.identifier not in names:
            record_file(pool, record.identifier).unlink(missing_ok=True)
            if _is_there(pool, record):
                image_file(pool, record.identifier).unlink()


def _keep(
    pool: Path,
    images: Iterable[PoolImage],
    source: ImageSource,
    files: tuple[SourceFile, ...] | None,
) -> None:
    """Images stay; their records follow another pattern for patients, or another time of files."""
    for image in images:
        now = image.made_of(source.place, source.patient, files or image.files)
        if now != image:
            write_image_record(pool, now)
