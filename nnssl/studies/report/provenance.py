"""Where the numbers of a study come from, and whether pre-training saw what is evaluated."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnssl.common.files import hash_json
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.leakage.ancestry import trace_ancestry
from nnssl.leakage.check import Contamination, Evaluation, Finding, check
from nnssl.leakage.seen import Seen
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.hub import PREFIX
from nnssl.nnunet.paths import (
    CONFIG_FILE,
    FINAL,
    PLANS_FILE,
    SPLITS_FILE,
    find_data_identifier,
    find_training_logs,
)
from nnssl.nnunet.plans import read_description, read_plans
from nnssl.nnunet.splits import read_splits
from nnssl.nnunet.weight_files import find_weight_file, read_weights
from nnssl.studies.analysis.validation import Validation
from nnssl.studies.run.folder import State, StudyFolder
from nnssl.studies.run.grid import Cell

STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+):", re.MULTILINE)
TIME = "%Y-%m-%d %H:%M:%S.%f"
EPOCH = re.compile(r": Epoch (\d+)\s*$|: Pseudo dice (\[.*\])", re.MULTILINE)
DICE = re.compile(r"(nan|\d*\.\d+(?:e-?\d+)?)(?=[),\]])")


@dataclass(frozen=True)
class CellRecord:
    """What is known of one run.

    Attributes:
        hours: wall clock of all attempts; None where nothing tells.
        source: where the hours come from: `cell.json` or nnU-Net's log.
        device: `CPU` or `GPU`, where the runner recorded it.
        finished: when its last checkpoint was written, UTC.
        command: the command with its environment, as it is typed in the folder of the study.
        same_as: the cell whose run is this one's too, and has the hours; None: its own.
    """

    cell: Cell
    state: State
    hours: float | None
    source: str
    device: str
    finished: str
    versions: dict[str, str]
    machine: dict[str, Any]
    command: str
    same_as: str | None = None


def read_records(folder: StudyFolder) -> list[CellRecord]:
    """One record per cell of the grid, whether it ran or not."""
    return [_read_record(folder, cell) for cell in folder.cells]


def _read_record(folder: StudyFolder, cell: Cell) -> CellRecord:
    stored, state = folder.record(cell), folder.state(cell)
    fold = None if state == "missing" else folder.fold_folder(cell)
    finished = fold / FINAL if fold is not None and state == "done" else None
    attempts = stored.get("attempts", [])
    time = ""
    if finished is not None:
        seconds = finished.stat().st_mtime
        time = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")
    run = folder.runs[cell.id]
    if run != cell.id:
        hours = None
    else:
        hours = sum(each["seconds"] for each in attempts) / 3600 if attempts else _read_hours(fold)
    return CellRecord(
        cell=cell,
        state=state,
        hours=hours,
        source="cell.json" if attempts else "nnU-Net's log",
        device=_name_device(attempts[-1]) if attempts else "device not recorded",
        finished=time,
        versions=stored.get("versions") or (_read_versions(finished) if finished else {}),
        machine=stored.get("machine", {}),
        command=_write_command(folder, cell),
        same_as=None if run == cell.id else run,
    )


def _name_device(attempt: Mapping[str, Any]) -> str:
    command = list(attempt.get("command", []))
    if "-device" in command:
        return {"cuda": "GPU"}.get(command[command.index("-device") + 1], "CPU")
    return "GPU" if attempt.get("variables", {}).get("CUDA_VISIBLE_DEVICES") else "default device"


def _write_command(folder: StudyFolder, cell: Cell) -> str:
    try:
        environment = folder.environment(cell)
    except ValueError as error:
        return f"({error})"
    variables = [f"{name}={shlex.quote(text)}" for name, text in environment.items() if text]
    line = " ".join([*variables, shlex.join(folder.command(cell))])
    return hide_folders(folder, line)


def hide_folders(folder: StudyFolder, text: str) -> str:
    """A text that names no folder of this machine: neither the study's, nor those of weights."""
    named = [arm.weights for arm in folder.study.pretraining.values() if arm.weights]
    paths = [folder.path, *(Path(each).parent for each in named if not each.startswith(PREFIX))]
    for path in paths:
        text = text.replace(f"{path}{os.sep}", "")
    return text


def describe_files(folder: StudyFolder) -> list[str]:
    """A sentence for each arm that starts from a file."""
    return [
        f"{method} starts from {hide_folders(folder, arm.weights)}, SHA-256 {arm.sha256}."
        for method, arm in folder.study.pretraining.items()
        if arm.weights is not None
    ]


def read_learning_curve(fold: Path) -> list[float]:
    """Mean pseudo Dice per epoch: nnU-Net's own, on patches of the validation cases."""
    values: dict[int, float] = {}
    epoch = 0
    for number, dice in (found for text in _read_logs(fold) for found in EPOCH.findall(text)):
        epoch = int(number) if number else epoch
        numbers = [float(each) for each in DICE.findall(dice) if each != "nan"]
        if numbers:
            values[epoch] = sum(numbers) / len(numbers)
    return [values.get(epoch, float("nan")) for epoch in range(max(values, default=-1) + 1)]


def hash_splits(folder: StudyFolder) -> str:
    """SHA-256 of the content of `splits_final.json`, or why there is none."""
    for cell in folder.cells:
        if cell.kind == "finetune" and folder.state(cell) == "done":
            preprocessed = Validation(folder.fold_folder(cell)).preprocessed
            if preprocessed is not None and (preprocessed / SPLITS_FILE).is_file():
                return hash_json(read_splits(preprocessed / SPLITS_FILE))
    return f"{SPLITS_FILE} is not at hand"


def read_configurations(
    folder: StudyFolder, records: Sequence[CellRecord]
) -> Iterator[tuple[str, str]]:
    """Trainer and resolved configuration of the first finished cell of every trainer."""
    seen = set()
    for cell in [each.cell for each in records if each.state == "done"]:
        file = folder.fold_folder(cell) / CONFIG_FILE
        if cell.trainer not in seen and file.is_file():
            seen.add(cell.trainer)
            yield f"{cell.trainer} (cell {cell.id})", file.read_text(encoding="utf-8")


def _read_logs(fold: Path) -> list[str]:
    files = find_training_logs(fold)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _read_hours(fold: Path | None) -> float | None:
    """Between the first and the last time stamp of nnU-Net's logs."""
    spans = [STAMP.findall(text) for text in _read_logs(fold)] if fold else []
    ends = [[datetime.strptime(each, TIME) for each in (s[0], s[-1])] for s in spans if s]
    return sum((end - begin).total_seconds() for begin, end in ends) / 3600 if ends else None


def _read_versions(checkpoint: Path) -> dict[str, str]:
    """For runs that were started by hand."""
    try:
        return read_checkpoint(checkpoint).get("nnssl", {}).get("versions", {})
    except ValueError:  # shown as unknown; the scores do not depend on it
        return {}


def find_leaks(folder: StudyFolder) -> dict[str, Contamination]:
    """Pre-training (or arm of a file) and fold -> what was found, for finished pairs of cells."""
    found: dict[str, Contamination] = {}
    for cell in folder.cells:
        source = cell.needs or cell.starts_from
        if source is None or cell.kind == "pretrain" or folder.state(cell) != "done":
            continue
        title = f"{source}, evaluated on fold {cell.fold}"
        if title not in found:
            found[title] = _check(folder, cell)
    return found


def _check(folder: StudyFolder, cell: Cell) -> Contamination:
    fold = folder.fold_folder(cell)
    dataset = Validation(fold).preprocessed
    source = next((each for each in folder.cells if each.id == cell.needs), None)
    if dataset is None or (source is not None and folder.state(source) != "done"):
        missing = "the checkpoint of the pre-training" if dataset else "the preprocessed dataset"
        return _unknown(f"{missing} is not at hand")
    validated = sorted(Validation(fold).scores)
    try:
        plans = read_plans(fold.parent / PLANS_FILE)
        identifier = find_data_identifier(plans, folder.study.configuration)
        images = None if identifier is None else dataset / identifier
        plan = PreprocessingPlan(plans, folder.study.configuration, read_description(dataset))
        evaluation = Evaluation(dataset, cell.fold, validated, images, plan)
        lineage = trace_ancestry(_read_source(folder, source, cell))
        checked = [check(Seen.of(each, dataset.parent), evaluation, "all") for each in lineage]
        return Contamination(tuple(finding for each in checked for finding in each.findings))
    except (OSError, ValueError) as error:  # a report without this check says so
        return _unknown(hide_folders(folder, str(error)))


def _read_source(folder: StudyFolder, source: Cell | None, cell: Cell) -> dict[str, Any]:
    if source is not None:
        return read_checkpoint(folder.fold_folder(source) / FINAL)
    arm = folder.study.pretraining[cell.starts_from or ""]
    return read_weights(find_weight_file(arm.weights or ""))


def _unknown(reason: str) -> Contamination:
    text = f"Images seen and evaluated could not be compared: {reason}."
    return Contamination((Finding("source", "unknown", text),))
