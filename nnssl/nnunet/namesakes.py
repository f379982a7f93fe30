"""Names of cases that look like parts of one patient, where nothing says whose the cases are."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nnssl.nnunet.cases import read_all_cases
from nnssl.nnunet.paths import REFERENCES, dataset_number

PIECE = re.compile(r"[^\W\d_]+|\d+")
FEW = 4  # parts of a patient, on average, that are always plausible
LEAST_SHARE = 0.1  # of the cases have to be one of several
SEPARATORS = "_-. "
PATTERNS = (r"(.+)_", r"(.+?)_", r"(.+)-", r"(.+?)-", r"(.+) ", r"(\D+\d+)", r"([^\W\d_]+)")
MOST_SHOWN = 3
SAY = "Say who is who: "  # before the command


def guess_patients(cases: Iterable[str]) -> dict[str, list[str]]:
    """Patient -> cases, where names of cases look like parts of one patient; else empty.

    Names are cut before their last letters or digits, then before the last two, and so on, until
    what is left groups the cases: many small groups, not a few large ones (a common beginning, or
    the sites of a study). `patient001_frame01` and `patient001_frame12` are of `patient001`, `la_1`
    and `la_2` of two patients.
    """
    names = sorted(set(cases))
    found: dict[str, list[str]] = {}
    for depth in range(1, min((len(_cut(name)) for name in names), default=0)):
        groups = _group(names, depth)
        if found and sorted(groups.values()) != sorted(found.values()):
            break
        if found and not _end_at_separators(groups):
            continue
        if found or _look_like_patients(names, groups):
            found = groups  # the shortest whole words that group alike are the patient's name
    return found


def describe_parts(dataset: Path, cases: Sequence[str], validation: Iterable[str] = ()) -> str:
    """What to say where cases look like parts of one patient and no record tells; empty: nothing.

    Args:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        cases: identifiers.
        validation: those of them that a fold holds back.
    """
    groups = {} if read_all_cases(dataset) else guess_patients(cases)
    if not groups:
        return ""
    held_out = set(validation)
    parted = sum(0 < len(held_out & set(parts)) < len(parts) for parts in groups.values())
    spread = f" {parted} of them are in training and in validation of this fold." if parted else ""
    what = f"{dataset.name} has no nnssl/cases.json: {describe_groups(groups)}{spread}"
    return f"{what} {SAY}nnssl_cases -d {dataset_number(dataset.name)} {suggest_rule(groups)}"


def describe_groups(groups: Mapping[str, Sequence[str]]) -> str:
    """One sentence on groups of `guess_patients`, with the first of them."""
    shown = [f"{name}: {', '.join(parts[:3])}" for name, parts in groups.items() if len(parts) > 1]
    return (
        f"every case counts as a patient of its own, but the {sum(map(len, groups.values()))} "
        f"cases look like parts of {len(groups)} patients ({'; '.join(shown[:MOST_SHOWN])})."
    )


def suggest_rule(groups: Mapping[str, Sequence[str]]) -> str:
    """The option of `nnssl_cases` that groups alike."""
    wanted = sorted(map(sorted, groups.values()))
    for pattern in PATTERNS:
        found: dict[str, list[str]] = defaultdict(list)
        for name in sorted(name for parts in groups.values() for name in parts):
            match = re.search(pattern, name)
            found[match[1] if match else name].append(name)
        if sorted(found.values()) == wanted:
            return f"--patient {shlex.quote(pattern)}"
    return "--patient REGEX"


def list_cases(dataset: Path) -> list[str]:
    """Identifiers of the training cases of `nnUNet_preprocessed/DatasetXXX_NAME`."""
    return sorted({file.name.split(".")[0] for file in (dataset / REFERENCES).glob("*.*")})


def _cut(name: str) -> list[int]:
    """Where the pieces of a name (runs of letters, runs of digits) begin."""
    return [piece.start() for piece in PIECE.finditer(name)]


def _group(names: Sequence[str], depth: int) -> dict[str, list[str]]:
    """Beginning without the last pieces -> names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name[: _cut(name)[-depth]].rstrip(SEPARATORS)].append(name)
    return dict(groups)


def _end_at_separators(groups: Mapping[str, Sequence[str]]) -> bool:
    return all(name[len(start)] in SEPARATORS for start, parts in groups.items() for name in parts)


def _look_like_patients(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether there are several groups, as small as the parts of a patient, that share endings."""
    if len(groups) < 2 or len(groups) == len(names):
        return False
    size = len(names) / len(groups)
    endings = {name[len(start) :] for start, parts in groups.items() for name in parts}
    is_shared = len(endings) <= max(2, len(names) * 0.7) or size <= 2
    of_several = sum(len(parts) for parts in groups.values() if len(parts) > 1)
    return (
        is_shared
        and of_several >= LEAST_SHARE * len(names)
        and (size <= FEW or len(groups) >= 2 * size)
    )
