"""Has pre-training seen what is evaluated? By fold, patient, dataset and content: the one check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnssl.common.files import hash_json, read_json
from nnssl.data.thumbnails import stack_thumbnails
from nnssl.data.unlabelled.records import read_records
from nnssl.leakage.copies import find_copies, load_case_thumbnails
from nnssl.leakage.overlaps import find_overlaps
from nnssl.leakage.seen import Seen, find_images
from nnssl.nnunet.cases import CaseRecord, read_all_cases, read_cases
from nnssl.nnunet.images import CaseError
from nnssl.nnunet.paths import CASES_FILE, SPLITS_FILE, own_folder

MOST_NAMED = 5


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated: validation cases of a fold."""

    dataset: Path  # `nnUNet_preprocessed/DatasetXXX_NAME`
    fold: int | str
    validation: Sequence[str]
    configuration_folder: Path | None = None  # nnU-Net's, for comparing by content

    @cached_property
    def records(self) -> dict[str, CaseRecord]:
        """Origin of every case."""
        return read_cases(self.dataset, self.validation)


@dataclass(frozen=True)
class Finding:
    """One sentence of the report."""

    by: Literal["source", "fold", "patient", "dataset", "content"]
    # possible: it may share images; unknown: it could not be looked for
    verdict: Literal["clean", "contaminated", "possible", "unknown"]
    text: str
    cases: tuple[str, ...] = ()  # cases of the evaluation that it is about


@dataclass(frozen=True)
class Contamination:
    """What was looked for and found."""

    findings: tuple[Finding, ...]
    compared: bool = False  # whether patients, or the folds of a pool's member, could be compared

    @property
    def contaminated(self) -> bool | None:
        """None: not proven, but some finding is `possible` or `unknown`."""
        verdicts = {finding.verdict for finding in self.findings}
        if "contaminated" in verdicts:
            return True
        return False if verdicts <= {"clean"} else None

    def to_dict(self) -> dict[str, Any]:
        findings = [{**asdict(each), "cases": list(each.cases)} for each in self.findings]
        return {"contaminated": self.contaminated, "findings": findings}


def check(seen: Seen, evaluation: Evaluation, content: bool = False) -> Contamination:
    """Looks for what is evaluated among what a pre-training has seen.

    By fold: a fold `all` of the same dataset; of a pool, another fold than that of the evaluation,
    or folds that have changed. By patient: with their dataset of origin, those of the validation
    cases and, of another dataset, those of imagesTs. By dataset: the table of public datasets that
    share images. By content: near-duplicates among thumbnails, which finds the same image, or
    another of the same patient and position, under another name, after bias correction,
    resampling, scaling, mirroring; not after cropping.

    Args:
        content: whether to compare by content, which reads every image once.

    Raises:
        ValueError: records lack a validation case.
    """
    if seen.cases is None:
        text = "The weights are not those of an nnSSL pre-training and do not say what was seen."
        return Contamination((Finding("source", "unknown", text),))
    findings = [
        *_check_fold(seen, evaluation),
        *_check_patients(seen, evaluation),
        *_check_datasets(seen, evaluation),
    ]
    if content:
        findings += _check_content(seen, evaluation)
    return Contamination(tuple(findings), seen.can_compare(evaluation.dataset))


def _check_fold(seen: Seen, evaluation: Evaluation) -> Iterator[Finding]:
    """A member's fold needs the same fold of the pool, drawn from the same folds."""
    name, pool, fold = evaluation.dataset.name, seen.dataset.name, evaluation.fold
    file = evaluation.dataset / SPLITS_FILE
    folds = seen.folds.get(name)
    if seen.fold == "all" and seen.dataset == evaluation.dataset:
        text = f"Pre-training ran on fold all of {name}, which holds nothing back."
    elif name not in seen.members:
        return
    elif str(seen.fold) != str(fold):
        text = (
            f"{pool} has {name} as a member and was trained on fold {seen.fold}; fold {fold} needs "
            f"its fold {fold}: nnUNetv2_train {pool} {seen.configuration} {fold} -p {seen.plans} "
            "-tr ..."
        )
    elif not seen.has_records and file.exists() and hash_json(read_json(file)) != folds:
        text = f"The folds of {name} are not those that {pool} was made from ({file})."
    else:
        return
    yield Finding("fold", "contaminated", text)


def _check_patients(seen: Seen, evaluation: Evaluation) -> Iterator[Finding]:
    patients, records = seen.patients, evaluation.records
    leaked = tuple(case for case in evaluation.validation if records[case].key in patients)
    tested = []
    if seen.dataset != evaluation.dataset:
        held_out = {record.key for record in read_all_cases(evaluation.dataset, "Ts").values()}
        tested = sorted(held_out & patients)
    what = f"Pre-training on {seen.dataset.name} saw"
    if leaked:
        text = f"{what} the patients of {len(leaked)} of {len(records)} validation cases"
        yield Finding("patient", "contaminated", f"{text}: {_name(leaked)}.", leaked)
    if tested:
        text = f"{what} {len(tested)} patients of imagesTs ({_name([key for _, key in tested])})."
        yield Finding("patient", "contaminated", text)
    if not leaked and not tested:
        yield _compare_none_seen(seen, evaluation)


def _compare_none_seen(seen: Seen, evaluation: Evaluation) -> Finding:
    """How far it can be told that no patient was seen."""
    missing = CASES_FILE.as_posix()
    origins = seen.origins & {record.dataset for record in evaluation.records.values()}
    if seen.members and origins and not seen.can_compare(evaluation.dataset):
        text = (
            f"{seen.dataset.name} has images of {', '.join(sorted(origins))}, and its {missing}, "
            "which names the patients, is not in nnUNet_preprocessed."
        )
        return Finding("patient", "possible", text)
    for dataset in (seen.dataset, evaluation.dataset):
        if not (dataset / CASES_FILE).exists():
            text = (
                f"Patients of {dataset.name} are not known ({missing} is missing); every case was "
                "taken for a patient of its own."
            )
            return Finding("patient", "unknown", text)
    if lost := sorted(set(seen.cases or ()) - set(seen.records)):
        text = f"{seen.dataset / CASES_FILE} does not name the patients of {_name(lost)}."
        return Finding("patient", "unknown", text)
    number = len({record.key for record in evaluation.records.values()})
    text = f"None of the {number} patients evaluated is among the {len(seen.patients)} seen."
    return Finding("patient", "clean", text)


def _check_datasets(seen: Seen, evaluation: Evaluation) -> list[Finding]:
    records = evaluation.records
    before, now = seen.origins, {record.dataset for record in records.values()}
    found = [
        Finding(
            "dataset",
            "possible",
            f"{each.seen} was seen and {each.evaluated} is evaluated: {each.what} ({each.source}).",
            tuple(case for case, record in records.items() if record.dataset == each.evaluated),
        )
        for each in find_overlaps(before, now)
    ]
    if found:
        return found
    names = ", ".join(sorted(before)), ", ".join(sorted(now))
    text = f"No overlap is known of {names[0]} (seen) with {names[1]} (evaluated)."
    if before == now:
        text = f"Seen and evaluated images are both of {names[0]}."
    return [Finding("dataset", "clean", text)]


def _check_content(seen: Seen, evaluation: Evaluation) -> Iterator[Finding]:
    """Compares thumbnails with those of the training cases, and of the images without labels."""
    cases, flips = seen.cases or (), seen.dataset != evaluation.dataset
    of_cases = partial(load_case_thumbnails, seen.configuration_folder, cases)
    yield _compare(evaluation, cases, of_cases, "seen", flips)
    if seen.images and seen.configuration_folder is not None:
        names = [image.name for image in seen.images]
        yield _compare(evaluation, names, lambda: _read_thumbnails(seen), "seen without labels")


def _compare(
    evaluation: Evaluation,
    names: Sequence[str],
    candidates: Callable[[], np.ndarray],
    what: str,
    flips: bool = True,
) -> Finding:
    cases = evaluation.validation
    try:
        queries = load_case_thumbnails(evaluation.configuration_folder, cases)
        copies = find_copies(queries, candidates(), flips=flips)
    except CaseError as error:
        return Finding("content", "unknown", f"Images cannot be compared: {error}.")
    if not copies:
        text = f"No image evaluated resembles one of the {len(names)} {what}."
        return Finding("content", "clean", text)
    copied = tuple(dict.fromkeys(cases[copy.query] for copy in copies))
    pairs = [
        f"{cases[each.query]} = {names[each.candidate]} ({each.correlation:.2f})"
        for each in sorted(copies, key=lambda copy: -copy.correlation)
    ]
    text = f"Pre-training saw near-duplicates of {len(copied)} cases (rank correlation): "
    return Finding("content", "contaminated", f"{text}{_name(pairs)}.", copied)


def _read_thumbnails(seen: Seen) -> np.ndarray:
    assert seen.configuration_folder is not None
    records = find_images(seen.images, own_folder(seen.configuration_folder), read_records)
    for image, record in zip(seen.images, records, strict=True):
        if record is None:
            raise CaseError(f"image without label {image.name} is gone or changed")
    return stack_thumbnails([record.decode_thumbnail() for record in records if record])


def _name(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
