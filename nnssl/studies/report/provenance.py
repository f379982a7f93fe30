"""Where the numbers of a study come from: commands, seeds, versions, hours, splits, settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, sha256_of
from nnssl.nnunet.paths import FINAL, SPLITS_FILE, find_training_logs
from nnssl.studies.run import outcome
from nnssl.studies.run.attempts import RECORD
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import Study

STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+):", re.MULTILINE)
EPOCH = re.compile(r": Epoch (\d+)\s*$|: Pseudo dice (\[.*\])", re.MULTILINE)
DICE = re.compile(r"(nan|\d*\.\d+(?:e-?\d+)?)(?=[),\]])")


@dataclass(frozen=True)
class CellRecord:
    """What is known of one run.

    Attributes:
        cell: the run.
        state: done, unfinished, failed or missing.
        hours: wall clock of all attempts; None where nothing tells.
        source: where the hours come from: `cell.json` or nnU-Net's log.
        device: `CPU` or `GPU`, where the runner recorded it.
        finished: when its last checkpoint was written, UTC.
        versions: of packages, where recorded.
        machine: what it ran on, where recorded.
        command: the command with its environment, as one line for a shell.
    """

    cell: Cell
    state: outcome.State
    hours: float | None
    source: str
    device: str
    finished: str
    versions: dict[str, str]
    machine: dict[str, Any]
    command: str


def cell_records(study_folder: Path, study: Study, cells: Sequence[Cell]) -> list[CellRecord]:
    """One record per cell of the grid, whether it ran or not."""
    return [_record(study_folder, study, cell) for cell in cells]


def _record(study_folder: Path, study: Study, cell: Cell) -> CellRecord:
    path = cell.folder(study_folder) / RECORD
    kept = read_json(path) if path.is_file() else {}
    state = outcome.state(study_folder, study, cell)
    fold = None if state == "missing" else cell.fold_folder(study_folder, study)
    attempts = kept.get("attempts", [])
    hours = sum(each["seconds"] for each in attempts) / 3600 if attempts else _logged_hours(fold)
    return CellRecord(
        cell=cell,
        state=state,
        hours=hours,
        source="cell.json" if attempts else "nnU-Net's log",
        device=_device(attempts[-1]) if attempts else "device not recorded",
        finished=_finished(fold) if state == "done" else "",
        versions=kept.get("versions") or _stored_versions(fold if state == "done" else None),
        machine=kept.get("machine", {}),
        command=command_line(study_folder, study, cell),
    )


def _device(attempt: Mapping[str, Any]) -> str:
    command = list(attempt.get("command", []))
    if "-device" in command:
        return {"cuda": "GPU"}.get(command[command.index("-device") + 1], "CPU")
    return "GPU" if attempt.get("variables", {}).get("CUDA_VISIBLE_DEVICES") else "default device"


def command_line(study_folder: Path, study: Study, cell: Cell) -> str:
    """The command of a cell as it is typed into a shell."""
    try:
        environment = cell.environment(study_folder, study)
    except ValueError as error:
        return f"({error})"
    variables = [f"{name}={shlex.quote(text)}" for name, text in environment.items() if text]
    return " ".join([*variables, shlex.join(cell.command(study))])


def logs(fold_folder: Path) -> list[str]:
    """Texts of nnU-Net's training logs, oldest first."""
    files = find_training_logs(fold_folder)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def learning_curve(fold_folder: Path) -> list[float]:
    """Mean pseudo Dice per epoch: nnU-Net's own, on patches of the validation cases."""
    values: dict[int, float] = {}
    epoch = 0
    for number, dice in (found for text in logs(fold_folder) for found in EPOCH.findall(text)):
        epoch = int(number) if number else epoch
        numbers = [float(each) for each in DICE.findall(dice) if each != "nan"]
        if numbers:
            values[epoch] = sum(numbers) / len(numbers)
    return [values.get(epoch, float("nan")) for epoch in range(max(values, default=-1) + 1)]


def splits_hash(study_folder: Path, study: Study, cells: Sequence[Cell]) -> str:
    """SHA-256 of the content of `splits_final.json`, or why there is none."""
    for cell in cells:
        if cell.kind == "finetune" and outcome.state(study_folder, study, cell) == "done":
            folder = outcome.preprocessed_folder(cell.fold_folder(study_folder, study))
            if folder is not None and (folder / SPLITS_FILE).is_file():
                return sha256_of(read_json(folder / SPLITS_FILE))
    return f"{SPLITS_FILE} is not at hand"


def configurations(
    study_folder: Path, study: Study, records: Sequence[CellRecord]
) -> Iterator[tuple[str, str]]:
    """Trainer and resolved configuration of the first finished cell of every trainer."""
    seen = set()
    for each in records:
        if each.state == "done" and each.cell.trainer not in seen:
            file = each.cell.fold_folder(study_folder, study) / "resolved_config.yaml"
            if file.is_file():
                seen.add(each.cell.trainer)
                title = f"{each.cell.trainer} (cell {each.cell.id})"
                yield title, file.read_text(encoding="utf-8")


def _logged_hours(fold: Path | None) -> float | None:
    spans = [STAMP.findall(text) for text in logs(fold)] if fold else []
    ends = [(_time(span[0]), _time(span[-1])) for span in spans if span]
    return sum((end - begin).total_seconds() for begin, end in ends) / 3600 if ends else None


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S.%f")


def _finished(fold: Path | None) -> str:
    assert fold is not None
    seconds = (fold / FINAL).stat().st_mtime
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _stored_versions(fold: Path | None) -> dict[str, str]:
    """From the checkpoint, for runs that were started by hand."""
    if fold is None:
        return {}
    from nnssl.nnunet.checkpoint import read_checkpoint

    try:
        return read_checkpoint(fold / FINAL).get("nnssl", {}).get("versions", {})
    except ValueError:  # shown as unknown; the scores do not depend on it
        return {}
