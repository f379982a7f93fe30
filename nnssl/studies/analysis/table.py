"""The long table of a study: one row per cell, case and structure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from nnssl.common.files import hash_file, read_json, write_json
from nnssl.common.parallel import for_each
from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.paths import LABELLED_FILE, SUMMARY
from nnssl.studies.analysis.surface import TOLERANCE, measure_case
from nnssl.studies.analysis.validation import Validation
from nnssl.studies.run.folder import StudyFolder
from nnssl.studies.run.grid import Cell

CELL_COLUMNS = (
    *("role", "method", "schedule", "unit", "budget", "fold", "repetition", "pretraining_seed"),
)
LABELLED = ("volumes", "slices", "patients")
COLUMNS = (
    *("cell", *CELL_COLUMNS, "patient", "case", "structure", "dice", "hd95", "nsd"),
    *(f"labelled_{number}" for number in LABELLED),
)
CACHE = "surface.json"


def collect_scores(
    folder: StudyFolder, tolerance: float = TOLERANCE, workers: int | None = None
) -> pd.DataFrame:
    """Scores of every finished fine-tuning and scratch cell.

    Dice is nnU-Net's own (`validation/summary.json`); HD95 and NSD are computed once per cell, in
    parallel over cells, and kept in `<cell>/surface.json` until the summary changes. A structure
    that is empty in reference and prediction is NaN everywhere, as in nnU-Net; one that is empty
    in one of them has Dice 0, NSD 0 and HD95 NaN.

    Args:
        folder: cells that are not done have no rows.
        tolerance: of NSD, mm.
        workers: processes; None: one per processor.

    Returns:
        `COLUMNS`; `patient` is the case where `cases.json` is missing.
    """
    cells = [c for c in folder.cells if c.kind == "finetune" and folder.state(c) == "done"]
    paths = [(folder.cell_folder(cell), folder.fold_folder(cell)) for cell in cells]
    missing = [pair for pair in dict.fromkeys(paths) if _read_cache(*pair, tolerance) is None]
    if missing:
        processes = max(1, min(workers or os.cpu_count() or 1, len(missing)))
        for_each(partial(_measure, tolerance), missing, processes, "HD95 and NSD")
    rows = [
        row
        for cell, pair in zip(cells, paths, strict=True)
        for row in _make_rows(cell, *pair, tolerance)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measure(tolerance: float, paths: tuple[Path, Path]) -> None:
    be_quiet()
    cell_folder, fold = paths
    run = Validation(fold)
    measure = partial(
        measure_case, regions=run.regions, tolerance=tolerance, ignore=run.ignore_label
    )
    cases = {case: measure(*pair) for case, pair in run.files.items()}
    made_from = _describe_source(fold, tolerance)
    write_json(cell_folder / CACHE, {"made_from": made_from, "cases": cases})


def _read_cache(cell_folder: Path, fold: Path, tolerance: float) -> dict[str, Any] | None:
    """Case -> structure key -> [HD95, NSD], if it belongs to today's summary."""
    path = cell_folder / CACHE
    stored = read_json(path) if path.is_file() else {}
    return stored["cases"] if stored.get("made_from") == _describe_source(fold, tolerance) else None


def _describe_source(fold: Path, tolerance: float) -> dict[str, Any]:
    """What the figures depend on; the summary by content, because clocks of machines differ."""
    return {"fold": fold.name, "summary": hash_file(fold / SUMMARY), "tolerance": tolerance}


def _make_rows(
    cell: Cell, cell_folder: Path, fold: Path, tolerance: float
) -> Iterator[dict[str, Any]]:
    run, surface = Validation(fold), _read_cache(cell_folder, fold, tolerance)
    assert surface is not None
    names = run.structures
    records = read_cases(run.preprocessed or Path(fold.parents[1].name), run.scores)
    path = fold / LABELLED_FILE
    labels = read_json(path) if path.is_file() else {}
    common = {
        "cell": cell.id,
        **{column: getattr(cell, column) for column in CELL_COLUMNS},
        **{f"labelled_{number}": labels.get(f"number_of_{number}") for number in LABELLED},
    }
    for case, per_structure in run.scores.items():
        for key, dice in per_structure.items():
            hd95, nsd = surface[case][key]
            where = {"patient": records[case].patient, "case": case}
            scores = {"structure": names.get(key, key), "dice": dice, "hd95": hd95, "nsd": nsd}
            yield {**common, **where, **scores}
