"""The contamination check of every pre-training of a study, against every fold that it served."""

from __future__ import annotations

from nnssl.common.files import read_json
from nnssl.leakage.check import Contamination, Evaluation, Finding, check
from nnssl.leakage.seen import Seen
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import FINAL, PLANS_FILE, find_data_identifier
from nnssl.studies.analysis.validation import Validation
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import Cell


def find_leaks(folder: StudyFolder) -> dict[str, Contamination]:
    """Pre-training and fold -> what its check has found, for finished pairs of cells."""
    by_id = {cell.id: cell for cell in folder.cells}
    found: dict[str, Contamination] = {}
    for cell in folder.cells:
        if cell.needs is None or folder.state(cell) != "done":
            continue
        source = by_id[cell.needs]
        title = f"{source.id}, evaluated on fold {cell.fold}"
        if title not in found:
            found[title] = _check(folder, source, cell)
    return found


def _check(folder: StudyFolder, source: Cell, cell: Cell) -> Contamination:
    fold = folder.fold_folder(cell)
    dataset = Validation(fold).preprocessed
    if folder.state(source) != "done" or dataset is None:
        missing = "the checkpoint of the pre-training" if dataset else "the preprocessed dataset"
        return _unknown(f"{missing} is not at hand")
    checkpoint = folder.fold_folder(source) / FINAL
    validated = sorted(Validation(fold).scores)
    try:
        plans = read_json(fold.parent / PLANS_FILE)
        identifier = find_data_identifier(plans, folder.study.configuration)
        images = None if identifier is None else dataset / identifier
        seen = Seen.of(read_checkpoint(checkpoint).get("nnssl", {}), dataset.parent)
        return check(seen, Evaluation(dataset, cell.fold, validated, images), content=True)
    except (OSError, ValueError) as error:  # a report without this check says so
        return _unknown(str(error))


def _unknown(reason: str) -> Contamination:
    text = f"Images seen and evaluated could not be compared: {reason}."
    return Contamination((Finding("source", "unknown", text),))
