"""Is a pool still what it was made as, and was every fine-tuning from it an honest one?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnssl.common.files import hash_json, read_json, stamp_file
from nnssl.convert.records import CONVERSION_FILE
from nnssl.data.pool.build import read_copies
from nnssl.data.pool.members import DatasetPool, assemble, read_member
from nnssl.data.pool.preprocess import measure_files
from nnssl.leakage.overlaps import find_overlaps
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import FINAL, SPLITS_FILE, Roots, dataset_number
from nnssl.nnunet.splits import read_splits


def describe_overlaps(pool: DatasetPool) -> list[str]:
    """Sentences on members that share images by the table of public datasets."""
    origins = {record.dataset for member in pool.members for record in member.records.values()}
    pairs = {frozenset((o.seen, o.evaluated)): o for o in find_overlaps(origins, origins)}
    return [
        f"{each.seen} and {each.evaluated} share images: {each.what} ({each.source}); fine-tuning "
        "on either is refused"
        for each in pairs.values()
    ]


def check_pool(roots: Roots, number: int) -> list[str]:
    """What is wrong with a pool; empty: nothing. ValueError where a member cannot be read."""
    folder = roots.dataset(number)
    path = roots.raw / folder / CONVERSION_FILE
    content = read_json(path) if path.exists() else {}
    if "configurations" not in content:
        raise ValueError(
            f"{roots.raw / folder} is not a pool; make one: nnssl_pool {number} --from"
        )
    members = [dataset_number(name) for name in content["members"]]
    pool = assemble(
        folder, [read_member(roots, each) for each in members], read_copies(roots.raw / folder)
    )
    preprocessed = roots.preprocessed / folder
    problems = list(_find_changes(pool, content, preprocessed / SPLITS_FILE))
    for name, configuration in content["configurations"].items():
        problems += _check_files(pool, preprocessed / name, configuration["cases"])
    return problems


def _find_changes(pool: DatasetPool, content: Mapping[str, Any], splits: Path) -> Iterator[str]:
    for member in pool.members:
        if hash_json(member.splits) != content["members"][member.folder]["splits"]:
            yield f"the folds of {member.folder} have changed since the pool was made; make it anew"
    if pool.job != content["job"]:
        yield "members, images or folds have changed since the pool was made; make it anew"
    if not splits.exists() or read_splits(splits) != pool.splits:
        yield f"{splits} is not the union of the members' folds; run nnssl_pool again"


def _check_files(
    pool: DatasetPool, folder: Path, records: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    name = folder.name
    images = {case.identifier: case.image for case in pool.cases}
    if missing := sorted(images.keys() - records.keys()):
        yield f"{name}: {len(missing)} cases are not preprocessed; run nnssl_pool again"
    for case in sorted(images.keys() & records.keys()):
        if measure_files(folder, case) != records[case]["bytes"]:
            yield f"{name}: the files of {case} are not those that were written"
        if stamp_file(images[case]) != records[case]["stamp"]:
            yield f"{name}: {images[case]} has changed since it was preprocessed"


def check_runs(results: Path, roots: Roots, number: int) -> Iterator[tuple[str, bool | None]]:
    """Fine-tuned runs that started from the pool: one sentence each, and whether it is honest."""
    pool = roots.dataset(number)
    for file in sorted(results.glob(f"Dataset*/*/fold_*/{FINAL}")):
        own = read_checkpoint(file, mmap=True).get("nnssl", {})
        weights = own.get("weights", {}) if own.get("kind") == "finetune" else {}
        source = weights.get("pretraining", {})
        if source.get("dataset") == pool:
            seen = weights["contaminated"]
            what = {True: "CONTAMINATED", False: "honest", None: "cannot be told"}[seen]
            text = f"{file.parent}: fold {own['fold']} from fold {source['fold']} of {pool}: {what}"
            yield text, None if seen is None else not seen
