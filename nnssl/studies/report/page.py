"""`nnssl_study report`: one HTML file and its tables, or the tables alone as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from nnssl import __version__
from nnssl.common.files import atomic_path, read_json, write_json
from nnssl.leakage.check import Contamination
from nnssl.studies.analysis import comparisons as compared
from nnssl.studies.analysis.comparisons import Comparison, compare
from nnssl.studies.analysis.statistics import LabelsSaved
from nnssl.studies.analysis.surface import TOLERANCE
from nnssl.studies.analysis.table import collect
from nnssl.studies.analysis.verdict import verdict
from nnssl.studies.report import provenance, tables
from nnssl.studies.report.drawing import Picture
from nnssl.studies.report.figures import draw_all
from nnssl.studies.report.leaks import find_leaks
from nnssl.studies.report.material import Material
from nnssl.studies.report.overlays import worst_cases
from nnssl.studies.report.provenance import CellRecord, cell_records
from nnssl.studies.report.template import PAGE
from nnssl.studies.run.folder import STUDY_FILE, open_study
from nnssl.studies.run.grid import Cell, cells
from nnssl.studies.run.spec import Study, waiting

FOLDER = "report"
PROBE_FILE = "probe.json"
COMMANDS = "Commands (in the folder of the study)"


@dataclass(frozen=True)
class Findings:
    """All that a report is written from."""

    folder: Path
    study: Study
    grid: Sequence[Cell]
    table: pd.DataFrame
    comparisons: list[Comparison]
    saved: Mapping[tuple[str, str], LabelsSaved]
    records: list[CellRecord]
    tolerance: float

    @property
    def unfinished(self) -> int:
        return sum(each.state != "done" for each in self.records)

    @property
    def sentences(self) -> list[str]:
        return verdict(self.comparisons, self.study.unit, self.unfinished, len(self.grid))

    @property
    def tables(self) -> list[tables.ReportTable]:
        unit = self.study.unit
        return [
            tables.arms(self.table, self.grid, unit, self.tolerance),
            tables.effects(self.comparisons, unit),
            tables.labels(self.saved, unit),
            tables.cost(self.records),
        ]


def write_report(
    study_folder: str | Path,
    images: bool = True,
    tolerance: float = TOLERANCE,
    workers: int | None = None,
) -> Path:
    """Writes `report/report.html`, `table.csv`, `table.json`, `effects.json` and the figures.

    Args:
        study_folder: folder of the study, finished or not.
        images: whether the page shows the worst cases, which are images of patients.
        tolerance: of the surface Dice, mm.
        workers: processes for HD95 and surface Dice; None: one per processor.

    Returns:
        The page: one file that needs nothing else.

    Raises:
        ValueError: the folder holds no study, or a finished run is damaged.
    """
    found = _findings(Path(study_folder), tolerance, workers)
    folder = found.folder / FOLDER
    leaked = find_leaks(found.folder, found.study, found.grid)
    pictures = draw_all(_material(found))
    overlays = worst_cases(found.folder, found.study, found.grid, found.table) if images else []
    _write_data(folder, found, leaked)
    for picture in pictures:
        _write(folder / "figures" / f"{picture.name}.svg", picture.data)
    _write(folder / "report.html", _page(found, leaked, pictures, overlays).encode())
    return folder / "report.html"


def markdown_tables(
    study_folder: str | Path, tolerance: float = TOLERANCE, workers: int | None = None
) -> str:
    """Verdict, scores, effects, labels saved, cost and commands as Markdown; no images.

    Args:
        study_folder: folder of the study, finished or not.
        tolerance: of the surface Dice, mm.
        workers: processes for HD95 and surface Dice; None: one per processor.

    Raises:
        ValueError: the folder holds no study, or a finished run is damaged.
    """
    found = _findings(Path(study_folder), tolerance, workers)
    parts = [f"## {_escaped(found.study.name)}", _escaped(found.study.summary), _setting(found)]
    parts.append(" ".join(_escaped(each) for each in found.sentences))
    shown = [*found.tables, tables.open_cells(found.records)]
    parts += [_markdown(table) for table in shown if table.rows]
    commands = "\n".join(each.command for each in found.records)
    return "\n\n".join([*filter(None, parts), f"### {COMMANDS}", f"```\n{commands}\n```"]) + "\n"


def _findings(folder: Path, tolerance: float, workers: int | None) -> Findings:
    study = open_study(folder)
    grid = cells(study)
    table = collect(folder, study, grid, tolerance, workers)
    return Findings(
        folder=folder,
        study=study,
        grid=grid,
        table=table,
        comparisons=compare(table),
        saved=compared.saved(table),
        records=[_relative(each, folder) for each in cell_records(folder, study, grid)],
        tolerance=tolerance,
    )


def _relative(record: CellRecord, folder: Path) -> CellRecord:
    """With a command that is typed in the folder of the study, and tells nobody's folders."""
    return replace(record, command=record.command.replace(f"{folder.absolute()}{os.sep}", ""))


def _material(found: Findings) -> Material:
    main = [each for each in found.records if each.cell.role == "main" and each.state == "done"]
    curves: dict[tuple[str, str, float], list[list[float]]] = {}
    probes: dict[str, list[float]] = {}
    hours: dict[str, list[float]] = {}
    needs = {each.cell.needs: each.cell.method for each in main if each.cell.needs}
    for each in main:
        cell, fold = each.cell, each.cell.fold_folder(found.folder, found.study)
        if cell.kind == "finetune" and cell.budget is not None:
            key = (cell.method, cell.schedule, cell.budget)
            curves.setdefault(key, []).append(provenance.learning_curve(fold))
        elif method := needs.get(cell.id):
            probes.setdefault(method, []).extend(_probe_dice(fold / PROBE_FILE))
            hours.setdefault(method, []).extend(filter(None, [each.hours]))
    return Material(
        table=found.table,
        comparisons=found.comparisons,
        curves=curves,
        probes=_means(probes),
        hours=_means(hours),
        unit=found.study.unit,
    )


def _means(values: Mapping[str, list[float]]) -> dict[str, float]:
    return {key: sum(each) / len(each) for key, each in values.items() if each}


def _probe_dice(path: Path) -> list[float]:
    """Dice of the pre-trained encoder, where the probe was on and read labels."""
    record = read_json(path) if path.is_file() else {}
    dice = record.get("encoders", {}).get("pretrained", {}).get("dice")
    return [float(dice)] if isinstance(dice, (int, float)) else []


def _write_data(folder: Path, found: Findings, leaked: Mapping[str, Contamination]) -> None:
    _write(folder / "table.csv", found.table.to_csv(index=False).encode())
    _write(folder / "table.json", found.table.to_json(orient="records", indent=1).encode())
    effects = {
        "study": found.study.name,
        "unfinished": found.unfinished,
        "verdict": found.sentences,
        "comparisons": [compared.plain(each) for each in found.comparisons],
        "labels_saved": compared.by_key(found.saved),
        "contamination": {title: each.to_dict() for title, each in leaked.items()},
    }
    write_json(folder / "effects.json", _without_nan(effects))


def _page(
    found: Findings,
    leaked: Mapping[str, Contamination],
    pictures: Sequence[Picture],
    overlays: Sequence[Picture],
) -> str:
    from jinja2 import Environment

    page = {
        "title": f"Study {found.study.name}",
        "summary": found.study.summary,
        "setting": _setting(found),
        "warnings": _warnings(found, leaked),
        "sentences": found.sentences,
        "tables": found.tables,
        "pictures": pictures,
        "overlays": overlays,
        "leaks": [(title, each.findings) for title, each in leaked.items()],
        "open_cells": tables.open_cells(found.records),
        "all_cells": tables.all_cells(found.records),
        "waiting": waiting(found.study),
        "splits": provenance.splits_hash(found.folder, found.study, found.grid),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "study": (found.folder / STUDY_FILE).read_text(encoding="utf-8"),
        "configurations": list(provenance.configurations(found.folder, found.study, found.records)),
    }
    return Environment(autoescape=True).from_string(PAGE).render(page=page)


def _setting(found: Findings) -> str:
    study = found.study
    patients = found.table["patient"].nunique()
    validated = f"{found.table['case'].nunique()} validation volumes of {patients} patients"
    return (
        f"Dataset {study.dataset}, configuration {study.configuration}, plans {study.plans}, "
        f"fold{'s' * (len(study.folds) > 1)} {', '.join(map(str, study.folds))}; {validated}."
    )


def _warnings(found: Findings, leaked: Mapping[str, Contamination]) -> list[str]:
    warnings = []
    if found.unfinished:
        warnings.append(f"Unfinished study: {found.unfinished} of {len(found.grid)} runs to go.")
    for title, each in leaked.items():
        if each.contaminated:
            warnings.append(
                f"Contaminated: {title}: pre-training saw what is evaluated; its differences to "
                "scratch are no evidence."
            )
    return warnings


def _markdown(table: tables.ReportTable) -> str:
    lines = [f"| {' | '.join(table.header)} |", "|" + "---|" * len(table.header)]
    lines += [f"| {' | '.join(map(_escaped, row))} |" for row in table.rows]
    return "\n".join([f"### {table.title}", "", *lines, *(["", table.note] if table.note else [])])


def _escaped(text: str) -> str:
    for mark in ("\\", "|", "<", "*", "`"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(content)


def _without_nan(content: Any) -> Any:
    """NaN and infinity are no JSON; they become null and text."""
    text = json.dumps(content, default=str)
    constants = {"NaN": None, "Infinity": "infinite", "-Infinity": "-infinite"}
    return json.loads(text, parse_constant=constants.__getitem__)
