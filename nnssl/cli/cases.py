"""``nnssl_cases``: whose the cases of a dataset are, shown and written (``nnssl/cases.json``).

Folds, label budgets and the check of what weights have seen go by patient. Datasets of
nnssl_convert tell whose each case is; for others say it here, by what their names have in common.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping, Sequence

from nnssl.cli.command import command, dataset_id, warn
from nnssl.nnunet.cases import CaseRecord
from nnssl.nnunet.namesakes import describe_parts
from nnssl.nnunet.paths import SPLITS_FILE, Roots

MOST_SHOWN = 10
OPTIONS = ("patient", "origin", "modality")


def _add_options(parser: ArgumentParser) -> None:
    parser.epilog = (
        "RULE: a regular expression with a group, whose text is the value; VALUE=REGEX, which "
        "gives the value to names where the expression is found; or text, the value of all cases."
    )
    add = parser.add_argument
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="nnU-Net dataset, id or name")
    text = r"names the patient: '(patient\d+)'; '(.+)': every case is a patient of its own"
    add("--patient", nargs="+", default=(), metavar="RULE", help=text)
    text = "dataset of origin: ACDC, or ACDC=^patient MMs=^A; one person has one origin"
    add("--origin", nargs="+", default=(), metavar="RULE", help=text)
    add(
        "--modality",
        nargs="+",
        default=(),
        metavar="RULE",
        help="CT or MR: CT=_ct MR=_mr, or '_(CT|MR)$'",
    )
    text = "write folds by patient (5); a former splits_final.json is set aside"
    add("--folds", type=int, nargs="?", const=5, metavar="N", help=text)
    add("--dry-run", action="store_true", help="show, write nothing")


@command(
    "nnssl_cases",
    __doc__,
    _add_options,
    example=r"-d 27 --patient '(patient\d+)' --folds --dry-run",
)
def main(options: Namespace) -> None:
    from nnssl.nnunet.splits import draw_splits
    from nnssl.nnunet.telling import Told, find_cases, read_entries, write_entries, write_splits

    roots = Roots.from_environment()
    name = roots.dataset(options.dataset_id)
    cases, known = find_cases(roots, name), read_entries(roots, name)
    told = Told(*(tuple(getattr(options, key)) for key in OPTIONS))
    entries = told.describe(cases, known, name.split("_", 1)[-1])
    is_told = any(getattr(options, key) for key in OPTIONS)
    if not known and not is_told:
        parts = describe_parts(roots.preprocessed / name, list(cases))
        print(
            parts
            or f"{name} has no nnssl/cases.json; each of its {len(cases)} cases counts as "
            "a patient of its own. --patient '(.+)' says that this is so."
        )
        return
    records = {c: CaseRecord(e["patient"], e["dataset"], e["modality"]) for c, e in entries.items()}
    _show(name, records)
    training = {case: record for case, record in records.items() if cases[case] == "Tr"}
    patients = {case: "/".join(record.key) for case, record in training.items()}
    splits = draw_splits(patients, options.folds) if options.folds else None
    if options.dry_run:
        print("nothing was written (--dry-run)")
        return
    aside = write_entries(roots, name, entries) if is_told else []
    aside += [] if splits is None else write_splits(roots, name, splits)
    for file in aside:
        print(f"the former file is {file}")
    _check_folds(roots, name, training)


def _show(name: str, records: Mapping[str, CaseRecord]) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for case, record in records.items():
        groups.setdefault(record.key, []).append(case)
    print(f"{name}: {len(records)} cases of {len(groups)} patients")
    for (origin, patient), cases in list(groups.items())[:MOST_SHOWN]:
        print(f"  {patient} ({origin}): {_join(cases)}")
    if len(groups) > MOST_SHOWN:
        print(f"  and {len(groups) - MOST_SHOWN} more patients")
    for what in ("dataset", "modality"):
        counts = Counter(getattr(record, what) for record in records.values())
        text = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
        print(f"  {'origin' if what == 'dataset' else what}: {text}")


def _join(cases: Sequence[str]) -> str:
    return ", ".join(cases[:MOST_SHOWN]) + ", ..." * (len(cases) > MOST_SHOWN)


def _check_folds(roots: Roots, name: str, records: Mapping[str, CaseRecord]) -> None:
    """Says what becomes of the folds that are there, or that nnU-Net would draw."""
    from nnssl.nnunet.splits import check_split, read_splits

    file = roots.preprocessed / name / SPLITS_FILE
    if not file.is_file():
        print(
            "There are no folds yet. nnSSL's trainers draw them by patient; nnU-Net's own, if they "
            "come first, by case. --folds 5 writes them now."
        )
        return
    try:
        check_split(read_splits(file), records)
    except ValueError as error:
        warn([f"{file}: {error} (--folds 5 does, and sets the former file aside)"])
