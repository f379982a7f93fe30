"""The tables of a report as text, for HTML and Markdown alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from nnssl.studies.report.findings import Findings
from nnssl.studies.report.provenance import CellRecord
from nnssl.studies.report.verdict import AGAINST, write_p, write_signed
from nnssl.studies.run.spec import SCRATCH

ROLES = {"main": "", "own_schedule": "own schedule", "added_steps": "added steps"}


@dataclass(frozen=True)
class ReportTable:
    """A table of texts.

    Attributes:
        title: heading.
        header: names of the columns.
        rows: the cells.
        note: how to read it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def make_tables(found: Findings) -> list[ReportTable]:
    """Scores, differences, labels saved and cost."""
    return [
        _tabulate_scores(found),
        _tabulate_differences(found),
        _tabulate_labels_saved(found),
        _tabulate_cost(found.records),
    ]


def tabulate_open_runs(records: Sequence[CellRecord]) -> ReportTable:
    """What is not done."""
    rows = tuple((e.cell.id, e.state, e.command) for e in records if e.state != "done")
    return ReportTable("Runs that are not done", ("run", "state", "command"), rows)


def tabulate_runs(records: Sequence[CellRecord]) -> ReportTable:
    """Every run with what repeats it."""
    header = (
        *("run", "state", "seed", "pre-training seed", "finished (UTC)", "hours", "machine"),
        *("versions", "command"),
    )
    rows = tuple(
        (
            *(each.cell.id, each.state, _write_text(each.cell.repetition)),
            *(_write_text(each.cell.pretraining_seed), each.finished or "n/a"),
            write_number(each.hours, 2),
            ", ".join(str(v) for v in each.machine.values()) or "not recorded",
            ", ".join(f"{k} {v}" for k, v in each.versions.items()) or "not recorded",
            each.command,
        )
        for each in records
    )
    note = "The seed draws labelled cases and fine-tuning alike."
    return ReportTable("Every run", header, rows, note)


def write_number(value: float | None, digits: int = 3) -> str:
    """A number, `n/a` where there is none."""
    return "n/a" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _tabulate_scores(found: Findings) -> ReportTable:
    """Methods x budgets: mean scores, and what was labelled."""
    keys = ["budget", "role", "schedule", "method"]
    planned = Counter(tuple(getattr(cell, key) for key in keys) for cell in found.folder.cells)
    groups = sorted(
        found.table.groupby(keys, sort=False), key=lambda item: (item[0][0], item[0][1] != "main")
    )
    header = (
        *("labels", "arm", "schedule", "runs", "labelled volumes", "labelled slices"),
        *("mean Dice", "Dice of each run", "HD95 (mm)", f"surface Dice ({found.tolerance:g} mm)"),
        "structures missed",
    )
    rows = tuple(_describe_arm(key, part, planned[key], found.unit) for key, part in groups)
    note = (
        "Each score is the mean over structures of the mean over validation cases, as nnU-Net "
        "computes it, on the original grid; then the mean over runs. Runs: done of planned. "
        "Structures missed: found in only one of prediction and reference; they count as Dice 0 "
        "and surface Dice 0, and have no HD95."
    )
    return ReportTable("Scores", header, rows, note)


def _describe_arm(key: tuple, part: pd.DataFrame, planned: int, unit: str) -> tuple[str, ...]:
    budget, role, schedule, method = key
    metrics = ["dice", "hd95", "nsd"]
    per_cell = part.groupby(["fold", "repetition", "structure"])[metrics].mean()
    runs = per_cell.groupby(level=["fold", "repetition"]).mean()
    missed = int(((part["dice"] == 0) & part["hd95"].isna()).sum())
    return (
        f"{budget:g} {unit}",
        method + (f" ({ROLES[role]})" if ROLES[role] else ""),
        schedule,
        f"{len(runs)} of {planned}",
        _write_range(part, "labelled_volumes"),
        _write_range(part, "labelled_slices"),
        write_number(runs["dice"].mean()),
        " ".join(write_number(value) for value in runs["dice"]),
        write_number(runs["hd95"].mean(), 1),
        write_number(runs["nsd"].mean()),
        f"{missed} of {int(part['dice'].notna().sum())}",
    )


def _write_range(part: pd.DataFrame, column: str) -> str:
    values = part.drop_duplicates("cell")[column].dropna()
    if values.empty:
        return "n/a"
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _tabulate_differences(found: Findings) -> ReportTable:
    """Every comparison with its interval; p-values only where some were computed."""
    tested = any(row.effect.p_holm is not None for row in found.comparisons)
    header = (
        *("labels", "method", "compared with", "schedule of scratch", "repetitions", "patients"),
        *("mean difference in Dice", "95 % interval", "each repetition"),
        *(("Holm-corrected p",) if tested else ()),
    )
    rows = []
    for row in found.comparisons:
        effect = row.effect
        cells = (
            *(
                f"{row.budget:g} {found.unit}",
                row.method,
                AGAINST[row.baseline],
                row.scratch_schedule,
            ),
            *(str(effect.repetitions), str(effect.patients), write_signed(effect.mean)),
            f"{write_signed(effect.low)} to {write_signed(effect.high)}",
            " ".join(write_signed(value) for value in effect.per_repetition),
        )
        rows.append(cells + ((write_p(effect.p_holm).removeprefix("= "),) if tested else ()))
    note = (
        "Positive: the method is better. Frames and structures are averaged within a patient; "
        "patients and repetitions are crossed random factors. With fewer than 5 repetitions there "
        "is no p-value, and an interval only describes. The best own schedule of scratch is chosen "
        "on these validation cases, per budget, in scratch's favour."
    )
    return ReportTable("Difference to scratch", header, tuple(rows), note)


def _tabulate_labels_saved(found: Findings) -> ReportTable:
    """How many labels scratch needs for the Dice of a method."""
    rows = tuple(
        (
            *(f"{budget:g} {found.unit}", method, schedule, write_number(value.method[i])),
            f"{value.text(i)} {found.unit}",
        )
        for (method, schedule), value in found.labels_saved.items()
        for i, budget in enumerate(value.budgets)
    )
    note = (
        "Read from scratch's monotone curve, linear in log2 of the labels; nothing is "
        "extrapolated beyond the budgets that were run."
    )
    header = ("labels of the method", "method", "schedule", "its Dice", "scratch needs")
    return ReportTable("Labels saved", header, rows, note)


def _tabulate_cost(records: Sequence[CellRecord]) -> ReportTable:
    """Hours per arm: pre-training once, and fine-tuning or training per run."""
    timed = [each for each in records if each.hours is not None]
    rows = []
    for method in dict.fromkeys(each.cell.method for each in timed):
        needed = {each.cell.needs for each in records if each.cell.method == method}
        before = [each for each in timed if each.cell.id in needed]
        after = [e for e in timed if e.cell.method == method and e.cell.kind == "finetune"]
        both = [*before, *after]
        pretraining = _write_hours(before) if method != SCRATCH else "none"
        hours = f"{sum(each.hours or 0.0 for each in both):.2f}"
        sources = [
            ", ".join(sorted(s)) for s in ({e.device for e in both}, {e.source for e in both})
        ]
        rows.append((method, pretraining, _write_hours(after), hours, *sources))
    header = ("arm", "pre-training", "training on labels", "hours in all", "device", "taken from")
    note = "Wall clock of all attempts, failed and interrupted ones included, with validation."
    return ReportTable("Cost", header, tuple(rows), note)


def _write_hours(records: Sequence[CellRecord]) -> str:
    if not records:
        return "n/a"
    mean = sum(each.hours or 0.0 for each in records) / len(records)
    return f"{len(records)} x {mean:.2f} h"


def _write_text(value: object) -> str:
    return "" if value is None else str(value)
