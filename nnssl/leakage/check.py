"""Has a training seen what is evaluated? By fold, record, name, dataset, content: the one check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnssl.common.files import hash_json
from nnssl.data.copies import (
    ALIKE,
    THRESHOLD,
    find_copies,
    is_beyond_likeness,
    load_case_thumbnails,
    make_signatures,
    measure_likeness,
)
from nnssl.data.thumbnails import stack_thumbnails
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.data.unlabelled.records import read_records
from nnssl.leakage.overlaps import find_overlaps
from nnssl.leakage.seen import Seen, SeenImage, find_images
from nnssl.leakage.test_set import load_test_thumbnails, read_test_set
from nnssl.nnunet.cases import CaseRecord, read_all_cases, read_cases
from nnssl.nnunet.images import CaseError
from nnssl.nnunet.paths import CASES_FILE, SPLITS_FILE, TEST_IMAGES, dataset_number, own_folder
from nnssl.nnunet.splits import read_splits

MOST_NAMED = 5
Content = Literal["none", "strangers", "all"]
Verdict = Literal["clean", "contaminated", "possible", "unknown"]


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated: validation cases of a fold, and later the images of imagesTs."""

    dataset: Path  # `nnUNet_preprocessed/DatasetXXX_NAME`
    fold: int | str
    validation: Sequence[str]
    configuration_folder: Path | None = None  # nnU-Net's, for comparing by content
    plan: PreprocessingPlan | None = None  # for comparing the raw images of imagesTs by content

    @cached_property
    def records(self) -> dict[str, CaseRecord]:
        """Origin of every validation case."""
        return read_cases(self.dataset, self.validation)

    @cached_property
    def tested(self) -> dict[str, CaseRecord]:
        """Origin of every case of imagesTs that is recorded."""
        return read_all_cases(self.dataset, "Ts")


@dataclass(frozen=True)
class Finding:
    """One sentence of the report."""

    by: Literal["source", "fold", "patient", "file", "name", "dataset", "content"]
    # possible: it may share images; unknown: it could not be looked for
    verdict: Verdict
    text: str
    cases: tuple[str, ...] = ()  # cases of the evaluation that it is about


@dataclass(frozen=True)
class Contamination:
    """What was looked for and found."""

    findings: tuple[Finding, ...]

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


def check(seen: Seen, evaluation: Evaluation, content: Content = "none") -> Contamination:
    """Looks for what is evaluated among what a training has seen.

    By fold: a fold `all` of the same dataset; of a pool, another fold than that of the evaluation,
    or folds that have changed. By record: with their dataset of origin, the patients of the
    validation cases and, of another dataset, those of imagesTs; and files from which cases of both
    were made. By name: equal names of patients in different datasets of origin. By dataset: the
    table of public datasets that share images. By content: near-duplicates among thumbnails, which
    finds the same image, or another of the same patient and position, under another name, after
    bias correction, resampling, scaling, mirroring; not after cropping by more than 3 %.

    Args:
        content: compare by content, which reads every validation image once, with `all` that was
            seen, or with `strangers`: images of patients whom the dataset of the evaluation does
            not know by record. With these, images of imagesTs are compared in both cases.

    Raises:
        ValueError: records lack a validation case.
    """
    if seen.cases is None:
        return Contamination((Finding("source", "unknown", seen.untold),))
    strangers = _find_strangers(seen, evaluation)
    findings = [
        *_check_fold(seen, evaluation),
        *_check_patients(seen, evaluation),
        *_check_files(seen, evaluation, strangers),
        *_check_names(seen, evaluation, strangers),
        *_check_datasets(seen, evaluation),
    ]
    names = {"none": [], "strangers": strangers, "all": [*seen.keys]}[content]
    findings += _check_content(seen, evaluation, names) if names else []
    findings += _check_test_images(seen, evaluation, strangers) if strangers and names else []
    return Contamination(tuple(findings))


def _check_fold(seen: Seen, evaluation: Evaluation) -> Iterator[Finding]:
    """A member's fold needs the same fold of the pool, drawn from the same folds."""
    name, pool, fold = evaluation.dataset.name, seen.dataset.name, evaluation.fold
    file = evaluation.dataset / SPLITS_FILE
    folds = seen.folds.get(name)
    if seen.fold == "all" and seen.dataset == evaluation.dataset:
        text = f"Training ran on fold all of {name}, which holds nothing back."
    elif name not in seen.members:
        return
    elif str(seen.fold) != str(fold):
        text = (
            f"{pool} has {name} as a member and was trained on fold {seen.fold}; fold {fold} needs "
            f"its fold {fold}: nnUNetv2_train {pool} {seen.configuration} {fold} -p {seen.plans} "
            "-tr ..."
        )
    elif not seen.has_records and file.exists() and hash_json(read_splits(file)) != folds:
        text = f"The folds of {name} are not those that {pool} was made from ({file})."
    else:
        return
    yield Finding("fold", "contaminated", text)


def _check_patients(seen: Seen, evaluation: Evaluation) -> Iterator[Finding]:
    patients, records = seen.patients, evaluation.records
    leaked = tuple(case for case in evaluation.validation if records[case].key in patients)
    tested = []
    if seen.dataset != evaluation.dataset:
        tested = sorted({record.key for record in evaluation.tested.values()} & patients)
    what = f"Training on {seen.dataset.name} saw"
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
    missing, name = CASES_FILE.as_posix(), evaluation.dataset.name
    if seen.members and not seen.has_records:
        origins = seen.origins & {record.dataset for record in evaluation.records.values()}
        if name in seen.members:
            text = f"The fold is that of {seen.dataset.name}, which was made from these folds."
            return Finding("patient", "clean", text)
        text = (
            f"{seen.dataset.name} has images of {', '.join(sorted(origins))}, and its {missing}, "
            "which names the patients, is not in nnUNet_preprocessed."
        )
        if origins:
            return Finding("patient", "possible", text)
    for dataset in (seen.dataset, evaluation.dataset):
        recorded = dataset == seen.dataset and seen.has_records
        if not recorded and not (dataset / CASES_FILE).exists():
            text = (
                f"Patients of {dataset.name} are not known ({missing} is missing); every case was "
                f"taken for a patient of its own (nnssl_cases -d {_number(dataset)} writes it)."
            )
            return Finding("patient", "unknown", text)
    if lost := sorted(set(seen.cases or ()) - set(seen.records)):
        text = f"{seen.dataset / CASES_FILE} does not name the patients of {_name(lost)}."
        return Finding("patient", "unknown", text)
    number = len({record.key for record in evaluation.records.values()})
    text = f"None of the {number} patients evaluated is among the {len(seen.patients)} seen."
    return Finding("patient", "clean", text)


def _check_files(seen: Seen, evaluation: Evaluation, strangers: Sequence[str]) -> Iterator[Finding]:
    """Cases that were made from the very files of cases that were seen."""
    made = {seen.records[name].sha256: name for name in strangers if name in seen.records}
    made.pop(None, None)
    for records, what in _name_parts(evaluation):
        pairs = {case: made[r.sha256] for case, r in records.items() if r.sha256 in made}
        if pairs:
            text = f"{len(pairs)} {what} were made from the same files as cases that were seen"
            named = _name([f"{case} = {other}" for case, other in pairs.items()])
            validated = tuple(case for case in pairs if case in evaluation.records)
            yield Finding("file", "contaminated", f"{text}: {named}.", validated)


def _check_names(seen: Seen, evaluation: Evaluation, strangers: Sequence[str]) -> Iterator[Finding]:
    """Patients of one name in two datasets of origin may be one person, or two."""
    names = {seen.keys[name][1] for name in strangers}
    patients = seen.patients
    for records, what in _name_parts(evaluation):
        same = [c for c, r in records.items() if r.patient in names and r.key not in patients]
        if same:
            text = (
                f"Patients of {len(same)} {what} have the name of a patient seen in another "
                f"dataset ({_name(sorted({records[case].patient for case in same}))}); if they are "
                "the same people, give both datasets one origin (nnssl_cases --origin)."
            )
            validated = tuple(case for case in same if case in evaluation.records)
            yield Finding("name", "unknown", text, validated)


def _name_parts(evaluation: Evaluation) -> list[tuple[Mapping[str, CaseRecord], str]]:
    """What is evaluated today, and what will be: records, and a word for them."""
    return [(evaluation.records, "cases"), (evaluation.tested, f"images of {TEST_IMAGES}")]


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


def _find_strangers(seen: Seen, evaluation: Evaluation) -> list[str]:
    """What was seen of patients whom the dataset of the evaluation does not know by record."""
    dataset = evaluation.dataset
    known = {record.key for record in read_all_cases(dataset).values()}
    prefix = f"{_number(dataset):03d}_" if dataset.name in seen.members else None  # see `PoolCase`
    own = set(seen.cases or ()) if seen.dataset == dataset else set()
    own |= {case for case in seen.cases or () if prefix and case.startswith(prefix)}
    return [name for name, key in seen.keys.items() if key not in known and name not in own]


def _check_content(seen: Seen, evaluation: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    """Compares the validation cases with signatures of the checkpoint, or with images at hand."""
    flips = seen.dataset != evaluation.dataset
    patients = {case: evaluation.records[case].patient for case in evaluation.validation}
    try:
        thumbnails = load_case_thumbnails(evaluation.configuration_folder, [*patients])
        found = _find_alike(seen, names, thumbnails, patients, flips)
    except CaseError as error:
        yield Finding("content", "unknown", f"Images cannot be compared: {error}.")
        return
    yield from _tell_alike(found, "cases")
    if not any(found.values()):
        text = f"No image evaluated resembles one of the {len(names)} seen."
        yield Finding("content", "clean", text)


def _check_test_images(
    seen: Seen, evaluation: Evaluation, strangers: Sequence[str]
) -> Iterator[Finding]:
    """The same of the images of imagesTs, which their dataset keeps from its own pre-training."""
    plan, what = evaluation.plan, f"images of {TEST_IMAGES}"
    if plan is None:
        return
    test = read_test_set(evaluation.dataset, plan.file_ending)
    try:
        own = own_folder(evaluation.dataset / plan.data_identifier)
        thumbnails = load_test_thumbnails(test, own, plan)
        if thumbnails is None:
            text = f"The {what} are not at hand in nnUNet_raw to compare them with what was seen."
            yield Finding("content", "unknown", text)
            return
        patients = dict(sorted(test.patients.items()))
        found = _find_alike(seen, strangers, thumbnails, patients, flips=True)
    except CaseError as error:
        yield Finding("content", "unknown", f"The {what} cannot be compared: {error}.")
        return
    yield from (replace(each, cases=()) for each in _tell_alike(found, what))


def _find_alike(
    seen: Seen,
    names: Sequence[str],
    thumbnails: np.ndarray,
    patients: Mapping[str, str],
    flips: bool,
) -> dict[str, list[tuple[str, str]]]:
    """Verdict -> pairs of an evaluated case and what it was found to be, the most alike first."""
    cases = [*patients]
    copies: dict[str, list[tuple[str, str]]] = {"contaminated": [], "unknown": []}
    found = find_copies(thumbnails, _load_signatures(seen, names), flips, ALIKE)
    likeness = measure_likeness(thumbnails, [*patients.values()]) if found else np.zeros(0)
    for each in sorted(found, key=lambda copy: -copy.correlation):
        case, name = cases[each.query], names[each.candidate]
        namesakes = flips and patients[case] == seen.keys[name][1]
        certain = each.correlation >= THRESHOLD or namesakes
        certain &= is_beyond_likeness(each.correlation, likeness[each.query])
        if certain or flips or each.correlation >= THRESHOLD:
            verdict = "contaminated" if certain else "unknown"
            copies[verdict].append((case, f"{case} = {name} ({each.correlation:.2f})"))
    return copies


def _tell_alike(found: Mapping[str, Sequence[tuple[str, str]]], what: str) -> Iterator[Finding]:
    """The graver of both verdicts, in one sentence; nothing where no image is alike."""
    kinds: dict[Verdict, tuple[str, str]] = {
        "contaminated": ("near-duplicates of", ""),
        "unknown": ("images like those of", ", perhaps cropped copies, or other people"),
    }
    for verdict, (kind, more) in kinds.items():
        if pairs := found[verdict]:
            cases = tuple(dict.fromkeys(case for case, _ in pairs))
            text = f"Training saw {kind} {len(cases)} {what}{more} (rank correlation): "
            yield Finding("content", verdict, f"{text}{_name([pair for _, pair in pairs])}.", cases)
            return


def _load_signatures(seen: Seen, names: Sequence[str]) -> np.ndarray:
    if all(name in seen.signatures for name in names):
        return np.stack([seen.signatures[name] for name in names])
    chosen = set(names)
    cases = [case for case in seen.cases or () if case in chosen]
    images = [image for image in seen.images if image.name in chosen]
    made = dict(zip(cases, load_case_thumbnails(seen.configuration_folder, cases), strict=True))
    made |= _read_thumbnails(seen, images) if images else {}
    return make_signatures(stack_thumbnails([made[name] for name in names]))


def _read_thumbnails(seen: Seen, images: Sequence[SeenImage]) -> dict[str, np.ndarray]:
    assert seen.configuration_folder is not None
    records = find_images(images, own_folder(seen.configuration_folder), read_records)
    for image, record in zip(images, records, strict=True):
        if record is None:
            raise CaseError(f"image without label {image.name} is gone or changed")
    return {i.name: r.decode_thumbnail() for i, r in zip(images, records, strict=True) if r}


def _number(dataset: Path) -> int:
    return dataset_number(dataset.name)


def _name(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
