"""The long table of a study: one row per cell, case and structure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nnssl.common.files import read_json, write_json
from nnssl.common.parallel import for_each
from nnssl.convert.volumes import be_quiet
from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.paths import SUMMARY
from nnssl.studies.analysis.surface import TOLERANCE, case_metrics
from nnssl.studies.run import outcome

if TYPE_CHECKING:
    from nnssl.studies.run.grid import Cell
    from nnssl.studies.run.spec import Study

CELL_COLUMNS = (
    *("role", "method", "schedule", "unit", "budget", "fold", "repetition", "pretraining_seed"),
)
COLUMNS = (
    *("cell", *CELL_COLUMNS, "patient", "case", "structure", "dice", "hd95", "nsd"),
    *("labelled_volumes", "labelled_slices", "labelled_patients"),
)
CACHE = "surface.json"


def collect(
    study_folder: str | Path,
    study: Study,
    cells: Sequence[Cell],
    tolerance: float = TOLERANCE,
    workers: int | None = None,
) -> pd.DataFrame:
    """Scores of every finished fine-tuning and scratch cell.

    Dice is nnU-Net's own (`validation/summary.json`); HD95 and NSD are computed once per cell, in
    parallel over cells, and kept in `<cell>/surface.json` until the summary changes. A structure
    that is empty in reference and prediction is NaN everywhere, as in nnU-Net; one that is empty
    in one of them has Dice 0, NSD 0 and HD95 NaN.

    Args:
        study_folder: folder of the study.
        study: the study.
        cells: its cells; those that are not done have no rows.
        tolerance: of NSD, mm.
        workers: processes; None: one per processor.

    Returns:
        `COLUMNS`; `patient` is the case where `cases.json` is missing.
    """
    folder = Path(study_folder)
    done = [
        each
        for each in cells
        if each.kind == "finetune" and outcome.state(folder, study, each) == "done"
    ]
    places = [(each.folder(folder), each.fold_folder(folder, study)) for each in done]
    open_places = [place for place in places if _cached(*place, tolerance) is None]
    if open_places:
        processes = max(1, min(workers or os.cpu_count() or 1, len(open_places)))
        for_each(partial(_measure, tolerance), open_places, processes, "HD95 and NSD")
    rows = [
        row
        for each, place in zip(done, places, strict=True)
        for row in _rows(each, *place, tolerance)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _cached(cell: Path, fold: Path, tolerance: float) -> dict[str, Any] | None:
    """Case -> structure key -> [HD95, NSD], if it belongs to today's summary."""
    kept = read_json(cell / CACHE) if (cell / CACHE).is_file() else {}
    return kept["cases"] if kept.get("made_from") == _made_from(fold, tolerance) else None


def _made_from(fold: Path, tolerance: float) -> dict[str, Any]:
    """What the figures depend on; the summary by content, because clocks of machines differ."""
    digest = hashlib.sha256((fold / SUMMARY).read_bytes()).hexdigest()
    return {"fold": fold.name, "summary": digest, "tolerance": tolerance}


def _measure(tolerance: float, place: tuple[Path, Path]) -> None:
    be_quiet()
    cell, fold = place
    keys = {key for case in outcome.scores(fold).values() for key in case}
    regions = {key: outcome.label_values(key) for key in sorted(keys)}
    ignore = outcome.ignore_label(fold)
    cases = {
        case: case_metrics(*pair, regions, tolerance, ignore)
        for case, pair in outcome.files(fold).items()
    }
    write_json(cell / CACHE, {"made_from": _made_from(fold, tolerance), "cases": cases})


def _rows(cell: Cell, folder: Path, fold: Path, tolerance: float) -> Iterator[dict[str, Any]]:
    dice, surface = outcome.scores(fold), _cached(folder, fold, tolerance)
    assert surface is not None
    names, patients, labels = (
        outcome.structures(fold),
        _patients(fold, dice),
        outcome.labelled(fold),
    )
    common = {
        "cell": cell.id,
        **{column: getattr(cell, column) for column in CELL_COLUMNS},
        **{
            f"labelled_{n}": labels.get(f"number_of_{n}") for n in ("volumes", "slices", "patients")
        },
    }
    for case, per_structure in dice.items():
        for key, value in per_structure.items():
            hd95, nsd = surface[case][key]
            scores = {"dice": value, "hd95": hd95, "nsd": nsd}
            where = {"patient": patients[case], "case": case, "structure": names.get(key, key)}
            yield {**common, **where, **scores}


def _patients(fold: Path, cases: Sequence[str] | dict[str, Any]) -> dict[str, str]:
    folder = outcome.preprocessed_folder(fold) or Path(fold.parents[1].name)
    return {case: entry.patient for case, entry in read_cases(folder, cases).items()}
