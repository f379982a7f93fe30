"""What the user tells of a dataset's cases: patient, origin and modality, read from their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, write_json
from nnssl.nnunet.cases import make_cases_file
from nnssl.nnunet.namesakes import list_cases
from nnssl.nnunet.paths import (
    CASES_FILE,
    DATASET_FILE,
    SPLITS_FILE,
    TEST_IMAGES,
    TRAINING_IMAGES,
    Roots,
    find_raw_images,
)
from nnssl.nnunet.splits import Split

VALUE_OF = re.compile(r"([\w .+-]+)=(.+)")  # VALUE=REGEX
MOST_NAMED = 10
Entries = dict[str, dict[str, Any]]  # case -> its entry in `cases.json`


@dataclass(frozen=True)
class Told:
    """The options that say whose the cases are.

    Attributes:
        patient, origin, modality: rules, of which the first that fits a name counts: a regular
            expression with a group, whose text is the value; `VALUE=REGEX`, which gives the value
            where the expression is found; or text, which is the value of all. None: not told.
    """

    patient: Sequence[str] = ()
    origin: Sequence[str] = ()
    modality: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option in ("patient", "origin", "modality"):
            for rule in getattr(self, option):
                try:
                    re.compile(rule)
                except re.error as error:
                    what = f"--{option}: {rule!r} is no regular expression ({error})"
                    raise ValueError(what) from error
        if any(_read(rule, "") for rule in self.patient):
            raise ValueError(
                f"--patient: {self.patient[0]!r} has no group; put what names the patient in "
                r"parentheses, for example --patient '(patient\d+)'; '(.+)': every case is one"
            )

    def describe(self, cases: Mapping[str, str], known: Mapping[str, Any], name: str) -> Entries:
        """Entries of all cases, those that are known with what is told now.

        Args:
            cases: identifier -> `Tr` or `Ts`.
            known: entries so far.
            name: of the dataset, its origin where nothing else is known.

        Raises:
            ValueError: a rule is given, and none of its kind fits a case.
        """
        entries: Entries = {}
        for case, part in cases.items():
            told = {
                key: _find(option, rules, case)
                for key, option, rules in (
                    ("patient", "patient", self.patient),
                    ("dataset", "origin", self.origin),
                    ("modality", "modality", self.modality),
                )
                if rules
            }
            entry = {"patient": case, "dataset": name, "modality": "unknown", "part": part}
            entries[case] = {**entry, **known.get(case, {}), **told}
        return entries


def _find(option: str, rules: Sequence[str], case: str) -> str:
    for rule in rules:
        if found := _read(rule, case):
            return found
    raise ValueError(f"--{option}: nothing of {' '.join(map(repr, rules))} is found in {case!r}")


def _read(rule: str, case: str) -> str | None:
    if pair := VALUE_OF.fullmatch(rule):
        return pair[1] if re.search(pair[2], case) else None
    if not re.compile(rule).groups:
        return rule
    found = re.search(rule, case)
    return found[1] if found else None


def find_cases(roots: Roots, name: str) -> dict[str, str]:
    """Case -> `Tr` or `Ts`, of a dataset by its full name; ValueError where it has none."""
    file, cases = roots.raw / name / DATASET_FILE, {}
    if file.is_file():
        description = read_json(file)
        ending = description["file_ending"]
        test = find_raw_images(roots.raw / name / TEST_IMAGES, ending)
        training = find_raw_images(roots.raw / name / TRAINING_IMAGES, ending)
        cases = dict.fromkeys(test, "Ts") | dict.fromkeys(training, "Tr")
        cases |= dict.fromkeys(description.get("dataset", ()), "Tr")
    cases = cases or dict.fromkeys(list_cases(roots.preprocessed / name), "Tr")
    if not cases:
        raise ValueError(f"{name} has no cases, neither raw nor preprocessed")
    return dict(sorted(cases.items()))


def read_entries(roots: Roots, name: str) -> Entries:
    """What is recorded of the cases so far; empty: nothing."""
    places = (roots.preprocessed / name / CASES_FILE, roots.raw / name / CASES_FILE.name)
    found = next((file for file in places if file.is_file()), None)
    return {} if found is None else read_json(found)["cases"]


def write_entries(roots: Roots, name: str, entries: Entries) -> list[Path]:
    """Writes the records where they are read, and their copy beside the raw data."""
    return _write_both(roots, name, make_cases_file(entries), CASES_FILE, CASES_FILE.name)


def write_splits(roots: Roots, name: str, splits: Split) -> list[Path]:
    """The same for the folds."""
    return _write_both(roots, name, splits, SPLITS_FILE, SPLITS_FILE)


def _write_both(
    roots: Roots, name: str, content: Any, preprocessed: str | Path, raw: str
) -> list[Path]:
    """Writes where the dataset's folders are; a former file of other content is set aside."""
    folders = ((roots.preprocessed / name, preprocessed), (roots.raw / name, raw))
    aside = []
    for file in (folder / where for folder, where in folders if folder.is_dir()):
        if file.is_file():
            if read_json(file, Any) == content:
                continue
            now = datetime.now().strftime("%Y%m%dT%H%M%S")
            aside.append(file.rename(file.with_name(f"{file.stem}_before_{now}{file.suffix}")))
        write_json(file, content)
    return aside
