"""Has pre-training seen what the evaluation is made on? By patient, by dataset, by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nnssl.common.files import read_json
from nnssl.data.thumbnails import Duplicate, near_duplicates, thumbnails
from nnssl.leakage.contamination_unlabelled import UnlabelledSeen
from nnssl.leakage.overlaps import known_overlaps
from nnssl.nnunet.cases import CASES_FILE, CaseRecord, read_cases
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.images import CaseError
from nnssl.nnunet.splits import SPLITS_FILE

Verdict = Literal["clean", "contaminated", "possible", "unknown"]
Way = Literal["source", "fold", "patient", "dataset", "content"]
THUMBNAILS = "thumbnails.npz"
MOST_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One sentence of the report.

    Attributes:
        by: the way in which it was looked for.
        verdict: `clean`, `contaminated`, `possible` (a known overlap of datasets), or `unknown`
            (it could not be looked for).
        text: a sentence for the report.
        cases: cases of the evaluation that it is about.
    """

    by: Way
    verdict: Verdict
    text: str
    cases: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Images:
    """Cases of one preprocessed dataset.

    Attributes:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        data_identifier: the configuration's folder in it, for instance `nnUNetPlans_2d`; None
            where it is not known.
        cases: identifiers.
    """

    dataset: Path
    data_identifier: str | None
    cases: tuple[str, ...]

    @property
    def own(self) -> Path | None:
        """nnssl's folder of the configuration."""
        if self.data_identifier is None:
            return None
        return self.dataset / "nnssl" / self.data_identifier

    def records(self) -> dict[str, CaseRecord]:
        return read_cases(self.dataset, self.cases)

    def thumbnails(self) -> Any:
        """See `thumbnails.thumbnails`; kept among nnSSL's own files of the dataset."""
        if self.own is None:
            raise CaseError("the checkpoint does not say how its images were prepared")
        return thumbnails(self.dataset / self.own.name, self.own / THUMBNAILS, self.cases)


def check(
    source: Path | Mapping[str, Any] | None,
    dataset: Path,
    data_identifier: str,
    fold: int,
    *,
    validation: Sequence[str] | None = None,
    content: bool = True,
) -> Contamination:
    """Looks for images of the evaluation among those that pre-training saw.

    By patient: patients (with their dataset of origin) of the cases that the checkpoint lists. By
    dataset: the table of datasets that share images. By content: near-duplicates among thumbnails,
    which finds the same image, or another of the same patient and position, under another name,
    after bias correction, resampling, scaling, mirroring; not after cropping.

    Args:
        source: pre-training checkpoint, or its content; None for random weights.
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME` of the evaluation. The dataset of the
            pre-training is looked for beside it.
        data_identifier: folder of the evaluated configuration in it.
        fold: fold of the evaluation.
        validation: cases of the evaluation; None: the fold's validation cases.
        content: whether to compare by content, which reads every image once.

    Raises:
        ValueError: the fold is not in the split, or the checkpoint cannot be read.
        FileNotFoundError: there is no checkpoint, or no split and no `validation`.
    """
    if source is None:
        return Contamination((Finding("source", "clean", "It starts from random weights."),))
    own = _own_part(source)
    if "train" not in own.get("cases", {}):
        text = "The weights are not those of an nnSSL pre-training and do not say what was seen."
        return Contamination((Finding("source", "unknown", text),))
    cases = tuple(_validation(dataset, fold) if validation is None else validation)
    evaluated = Images(dataset, data_identifier, cases)
    seen = Images(dataset.parent / own["dataset"], _identifier(own), tuple(own["cases"]["train"]))
    unlabelled = UnlabelledSeen(own["cases"].get("unlabelled", {}), seen.own)
    findings = [_by_fold(own, dataset), *_by_records(seen, unlabelled, evaluated)]
    if content:
        findings.append(_by_content(seen, evaluated))
    if content and unlabelled.names:
        findings.append(_by_content_of(unlabelled, evaluated))
    return Contamination(tuple(filter(None, findings)))


def _own_part(source: Path | Mapping[str, Any]) -> Mapping[str, Any]:
    checkpoint = read_checkpoint(source) if isinstance(source, Path) else source
    own: Mapping[str, Any] = checkpoint.get("nnssl", {})
    return own


def _validation(dataset: Path, fold: int) -> list[str]:
    file = dataset / SPLITS_FILE
    splits = read_json(file)
    if not 0 <= fold < len(splits):
        raise ValueError(f"fold {fold}: {file} has folds 0 to {len(splits) - 1}")
    cases: list[str] = splits[fold]["val"]
    return cases


def _identifier(own: Mapping[str, Any]) -> str | None:
    """`data_identifier` of the pre-training; a configuration may inherit it."""
    configurations = own.get("plans", {}).get("configurations", {})
    name = own.get("configuration")
    while name in configurations:
        if "data_identifier" in configurations[name]:
            return str(configurations[name]["data_identifier"])
        name = configurations[name].get("inherits_from")
    return None


def _by_fold(own: Mapping[str, Any], dataset: Path) -> Finding | None:
    if own.get("fold") != "all" or own["dataset"] != dataset.name:
        return None
    text = f"Pre-training ran on fold all of {dataset.name}, which holds nothing back."
    return Finding("fold", "contaminated", text)


def _by_records(seen: Images, unlabelled: UnlabelledSeen, evaluated: Images) -> list[Finding]:
    try:
        records = seen.records(), evaluated.records()
    except ValueError as error:
        return [Finding("patient", "unknown", f"Patients cannot be compared: {error}.")]
    origins = {origin for origin, _ in unlabelled.patients}
    return [
        _by_patient(seen, unlabelled, evaluated, *records),
        *_by_dataset(origins | {record.dataset for record in records[0].values()}, records[1]),
    ]


def _by_patient(
    seen: Images,
    unlabelled: UnlabelledSeen,
    evaluated: Images,
    seen_records: Mapping[str, CaseRecord],
    records: Mapping[str, CaseRecord],
) -> Finding:
    patients = {_patient(record) for record in seen_records.values()} | unlabelled.patients
    leaked = tuple(case for case in evaluated.cases if _patient(records[case]) in patients)
    if leaked:
        text = f"Pre-training saw the patients of {len(leaked)} of {len(records)} cases"
        return Finding("patient", "contaminated", f"{text}: {_some(leaked)}.", leaked)
    for images in (seen, evaluated):
        if not (images.dataset / CASES_FILE).exists():
            text = (
                f"Patients of {images.dataset.name} are not known ({CASES_FILE.as_posix()} is "
                "missing); every case was taken for a patient of its own."
            )
            return Finding("patient", "unknown", text)
    number = len({_patient(record) for record in records.values()})
    text = f"None of the {number} patients evaluated is among the {len(patients)} seen."
    return Finding("patient", "clean", text)


def _patient(record: CaseRecord) -> tuple[str, str]:
    return record.dataset, record.patient


def _by_dataset(here: set[str], evaluated: Mapping[str, CaseRecord]) -> list[Finding]:
    there = {record.dataset for record in evaluated.values()}
    found = [
        Finding(
            "dataset",
            "possible",
            f"{each.seen} was seen and {each.evaluated} is evaluated: {each.what} ({each.source}).",
            tuple(case for case, record in evaluated.items() if record.dataset == each.evaluated),
        )
        for each in known_overlaps(here, there)
    ]
    if found:
        return found
    names = ", ".join(sorted(here)), ", ".join(sorted(there))
    text = f"No overlap is known of {names[0]} (seen) with {names[1]} (evaluated)."
    if here == there:
        text = f"Seen and evaluated images are both of {names[0]}."
    return [Finding("dataset", "clean", text)]


def _by_content(seen: Images, evaluated: Images) -> Finding:
    try:
        queries, candidates = evaluated.thumbnails(), seen.thumbnails()
    except CaseError as error:
        return Finding("content", "unknown", f"Images cannot be compared: {error}.")
    matches = near_duplicates(queries, candidates, flips=seen.dataset != evaluated.dataset)
    return _of_matches(matches, evaluated.cases, seen.cases, "seen")


def _by_content_of(unlabelled: UnlabelledSeen, evaluated: Images) -> Finding:
    try:
        queries, candidates = evaluated.thumbnails(), unlabelled.thumbnails()
    except CaseError as error:
        return Finding("content", "unknown", f"Images cannot be compared: {error}.")
    matches = near_duplicates(queries, candidates, flips=True)
    return _of_matches(matches, evaluated.cases, unlabelled.names, "seen without labels")


def _of_matches(
    matches: Sequence[Duplicate], evaluated: Sequence[str], seen: Sequence[str], what: str
) -> Finding:
    if not matches:
        text = f"No image evaluated resembles one of the {len(seen)} {what}."
        return Finding("content", "clean", text)
    cases = tuple(dict.fromkeys(evaluated[match.query] for match in matches))
    pairs = [
        f"{evaluated[m.query]} = {seen[m.candidate]} ({m.correlation:.2f})"
        for m in sorted(matches, key=lambda match: -match.correlation)
    ]
    text = f"Pre-training saw near-duplicates of {len(cases)} cases (rank correlation): "
    return Finding("content", "contaminated", f"{text}{_some(pairs)}.", cases)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
