"""The contamination check of every pre-training of a study, against every fold that it served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnssl.common.files import read_json
from nnssl.leakage.check import Contamination, Evaluation, Finding, check
from nnssl.leakage.seen import Seen
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import FINAL, PLANS_FILE, find_data_identifier
from nnssl.studies.run import outcome
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import Study


def find_leaks(study_folder: Path, study: Study, cells: Sequence[Cell]) -> dict[str, Contamination]:
    """Pre-training and fold -> what its check has found, for finished pairs of cells."""
    by_id = {cell.id: cell for cell in cells}
    found: dict[str, Contamination] = {}
    for cell in cells:
        if cell.needs is None or outcome.state(study_folder, study, cell) != "done":
            continue
        source = by_id[cell.needs]
        title = f"{source.id}, evaluated on fold {cell.fold}"
        if title not in found:
            found[title] = _check(study_folder, study, source, cell)
    return found


def _check(study_folder: Path, study: Study, source: Cell, cell: Cell) -> Contamination:
    fold = cell.fold_folder(study_folder, study)
    dataset = outcome.preprocessed_folder(fold)
    if outcome.state(study_folder, study, source) != "done" or dataset is None:
        missing = "the checkpoint of the pre-training" if dataset else "the preprocessed dataset"
        return _unknown(f"{missing} is not at hand")
    checkpoint = source.fold_folder(study_folder, study) / FINAL
    validated = sorted(outcome.scores(fold))
    try:
        images = dataset / _find_identifier(fold, study.configuration)
        seen = Seen.of(read_checkpoint(checkpoint).get("nnssl", {}), dataset.parent)
        return check(seen, Evaluation(dataset, cell.fold, validated, images), content=True)
    except (OSError, ValueError) as error:  # a report without this check says so
        return _unknown(str(error))


def _unknown(reason: str) -> Contamination:
    text = f"Images seen and evaluated could not be compared: {reason}."
    return Contamination((Finding("source", "unknown", text),))


def _find_identifier(fold: Path, configuration: str) -> str:
    file = fold.parent / PLANS_FILE
    found = find_data_identifier(read_json(file), configuration)
    if found is None:
        raise ValueError(f"{file} has no data_identifier for {configuration}")
    return found
