"""`nnssl_study report`: one HTML file and its tables, or the tables alone as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nnssl import __version__
from nnssl.common.files import atomic_path, write_json
from nnssl.common.page import Picture, ReportTable, render_page
from nnssl.leakage.check import Contamination
from nnssl.studies.analysis.surface import TOLERANCE
from nnssl.studies.report.figures import draw_all
from nnssl.studies.report.findings import Findings, collect_findings
from nnssl.studies.report.overlays import collect_pretraining_pictures, draw_worst_cases
from nnssl.studies.report.provenance import (
    describe_files,
    find_leaks,
    hash_splits,
    hide_folders,
    read_configurations,
)
from nnssl.studies.report.tables import (
    make_tables,
    tabulate_for_paper,
    tabulate_open_runs,
    tabulate_runs,
    write_csv,
    write_latex,
)
from nnssl.studies.run.folder import STUDY_FILE
from nnssl.studies.run.spec import find_waiting

FOLDER = "report"
TEMPLATE = "report.html.j2"
COMMANDS = "Commands (in the folder of the study)"


def write_report(
    study_folder: str | Path,
    images: bool = True,
    tolerance: float = TOLERANCE,
    workers: int | None = None,
) -> Path:
    """Writes `report/report.html`, `paper.csv` and `.tex`, all scores, effects and the figures.

    Args:
        study_folder: the study may be unfinished.
        images: whether the page shows the worst cases, which are images of patients.
        tolerance: of the surface Dice, mm.
        workers: processes for HD95 and surface Dice; None: one per processor.

    Returns:
        The page: one file that needs nothing else.

    Raises:
        ValueError: the folder holds no study, or a finished run is damaged.
    """
    found = collect_findings(study_folder, tolerance, workers)
    folder = Path(study_folder) / FOLDER
    leaked = find_leaks(found.folder)
    pictures = draw_all(found)
    overlays = draw_worst_cases(found) if images else []
    learned = collect_pretraining_pictures(found) if images else []
    _write_data(folder, found, leaked)
    for picture in pictures:
        _write(folder / "figures" / f"{picture.name}.svg", picture.data)
    page = _render(found, leaked, pictures, overlays, learned)
    _write(folder / "report.html", page.encode())
    return folder / "report.html"


def write_markdown(
    study_folder: str | Path, tolerance: float = TOLERANCE, workers: int | None = None
) -> str:
    """Verdict, scores, effects, labels saved, cost and commands as Markdown; no images.

    Arguments and errors as of `write_report`.
    """
    found = collect_findings(study_folder, tolerance, workers)
    study = found.folder.study
    parts = [f"## {_escape(study.name)}", _escape(study.summary), _describe_setting(found)]
    parts.append(" ".join(_escape(each) for each in found.sentences))
    shown = [*make_tables(found), tabulate_open_runs(found.runs)]
    parts += [_write_table(table) for table in shown if table.rows]
    commands = "\n".join(each.command for each in found.runs)
    return "\n\n".join([*filter(None, parts), f"### {COMMANDS}", f"```\n{commands}\n```"]) + "\n"


def _write_data(folder: Path, found: Findings, leaked: Mapping[str, Contamination]) -> None:
    _write(folder / "table.csv", found.table.to_csv(index=False).encode())
    _write(folder / "table.json", found.table.to_json(orient="records", indent=1).encode())
    paper = tabulate_for_paper(found)
    _write(folder / "paper.csv", write_csv(paper).encode())
    _write(folder / "paper.tex", write_latex(paper).encode())
    effects = {
        "study": found.folder.study.name,
        "unfinished": found.unfinished,
        "verdict": found.sentences,
        "comparisons": [{**vars(e), "effect": vars(e.effect)} for e in found.comparisons],
        "labels_saved": [
            {
                **{"method": method, "schedule": schedule, **vars(saved)},
                "text": [saved.text(i) for i in range(len(saved.budgets))],
            }
            for (method, schedule), saved in found.labels_saved.items()
        ],
        "contamination": {title: each.to_dict() for title, each in leaked.items()},
    }
    write_json(folder / "effects.json", _replace_nan(effects))


def _render(
    found: Findings,
    leaked: Mapping[str, Contamination],
    pictures: Sequence[Picture],
    overlays: Sequence[Picture],
    learned: Sequence[Picture],
) -> str:
    folder = found.folder
    return render_page(
        "nnssl.studies.report",
        TEMPLATE,
        study=folder.study,
        found=found,
        setting=_describe_setting(found),
        tables=make_tables(found),
        pictures=pictures,
        overlays=overlays,
        learned=learned,
        leaks=leaked,
        open_cells=tabulate_open_runs(found.runs),
        all_cells=tabulate_runs(found.records),
        waiting=find_waiting(folder.study),
        splits=hash_splits(folder),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        study_file=hide_folders(folder, (folder.path / STUDY_FILE).read_text(encoding="utf-8")),
        configurations=read_configurations(folder, found.records),
    )


def _describe_setting(found: Findings) -> str:
    study = found.folder.study
    patients = found.table["patient"].nunique()
    validated = f"{found.table['case'].nunique()} validation volumes of {patients} patients"
    setting = (
        f"Dataset {study.dataset}, configuration {study.configuration}, plans {study.plans}, "
        f"fold{'s' * (len(study.folds) > 1)} {', '.join(map(str, study.folds))}; {validated}."
    )
    return " ".join([setting, *describe_files(found.folder)])


def _write_table(table: ReportTable) -> str:
    lines = [f"| {' | '.join(table.rows[0])} |", "|" + "---|" * len(table.rows[0])]
    lines += [f"| {' | '.join(map(_escape, row.values()))} |" for row in table.rows]
    return "\n".join([f"### {table.title}", "", *lines, *(["", table.note] if table.note else [])])


def _escape(text: str) -> str:
    for mark in ("\\", "|", "<", "*", "`"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(content)


def _replace_nan(content: Any) -> Any:
    """NaN and infinity are no JSON; they become null and text."""
    text = json.dumps(content, default=str)
    constants = {"NaN": None, "Infinity": "infinite", "-Infinity": "-infinite"}
    return json.loads(text, parse_constant=constants.__getitem__)
