"""The tables of a report as text, for HTML and Markdown alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from nnssl.common.page import ReportTable
from nnssl.studies.report.findings import AGAINST, Findings, write_interval, write_p, write_signed
from nnssl.studies.report.provenance import CellRecord
from nnssl.studies.report.words import name_budget
from nnssl.studies.run.grid import find_stages

ROLES = {"main": "", "own_schedule": " (own schedule)", "added_steps": " (added steps)"}


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
    rows = [
        {"run": each.cell.id, "state": each.state, "command": each.command}
        for each in records
        if each.state != "done"
    ]
    return ReportTable("Runs that are not done", rows)


def tabulate_runs(records: Sequence[CellRecord]) -> ReportTable:
    """Every run with what repeats it."""
    rows = [
        {
            "run": each.cell.id,
            "state": each.state,
            "seed": _write_seed(each.cell.repetition),
            "pre-training seed": _write_seed(each.cell.pretraining_seed),
            "finished (UTC)": each.finished or "n/a",
            "hours": _write_number(each.hours, 2),
            "machine": ", ".join(str(v) for v in each.machine.values()) or "not recorded",
            "versions": ", ".join(f"{k} {v}" for k, v in each.versions.items()) or "not recorded",
            "command": f"as {each.same_as}" if each.same_as else each.command,
        }
        for each in records
    ]
    return ReportTable("Every run", rows, "The seed draws labelled cases and fine-tuning alike.")


def _tabulate_scores(found: Findings) -> ReportTable:
    """Methods x budgets: mean scores, and what was labelled."""
    keys = ["budget", "role", "schedule", "method"]
    planned = Counter(tuple(getattr(cell, key) for key in keys) for cell in found.folder.cells)
    groups = sorted(
        found.table.groupby(keys, sort=False), key=lambda item: (item[0][0], item[0][1] != "main")
    )
    rows = []
    for key, part in groups:
        budget, role, schedule, method = key
        per_run = part.groupby(["fold", "repetition", "structure"])[["dice", "hd95", "nsd"]].mean()
        runs = per_run.groupby(level=["fold", "repetition"]).mean()
        missed = int(((part["dice"] == 0) & part["hd95"].isna()).sum())
        rows.append(
            {
                "labels": name_budget(budget, found.unit),
                "method": f"{method}{ROLES[role]}",
                "schedule": schedule,
                "runs": f"{len(runs)} of {planned[key]}",
                "labelled volumes": _write_range(part, "labelled_volumes"),
                "labelled slices": _write_range(part, "labelled_slices"),
                "mean Dice": _write_number(runs["dice"].mean()),
                "Dice of each run": " ".join(map(_write_number, runs["dice"])),
                "HD95 (mm)": _write_number(runs["hd95"].mean(), 1),
                f"surface Dice ({found.tolerance:g} mm)": _write_number(runs["nsd"].mean()),
                "structures missed": f"{missed} of {int(part['dice'].notna().sum())}",
            }
        )
    note = (
        "Each score is the mean over structures of the mean over validation cases, as nnU-Net "
        "computes it, on the original grid; then the mean over runs. Runs: done of planned. "
        "Structures missed: found in only one of prediction and reference; they count as Dice 0 "
        "and surface Dice 0, and have no HD95."
    )
    return ReportTable("Scores", rows, note)


def _tabulate_differences(found: Findings) -> ReportTable:
    """Every comparison with its interval; p-values only where some were computed."""
    tested = any(row.effect.p_holm is not None for row in found.comparisons)
    rows = []
    for row in found.comparisons:
        effect = row.effect
        p = {"Holm-corrected p": write_p(effect.p_holm).removeprefix("= ")} if tested else {}
        rows.append(
            {
                "labels": name_budget(row.budget, found.unit),
                "method": row.method,
                "compared with": AGAINST[row.baseline],
                "schedule of scratch": row.scratch_schedule,
                "repetitions": str(effect.repetitions),
                "patients": str(effect.patients),
                "mean difference in Dice": write_signed(effect.mean),
                "95 % interval": write_interval(effect),
                "each repetition": " ".join(map(write_signed, effect.per_repetition)),
                **p,
            }
        )
    note = (
        "Positive: the method is better. Frames and structures are averaged within a patient; "
        "patients and repetitions are crossed random factors. With fewer than 5 repetitions there "
        "is no p-value, and an interval only describes. The best own schedule of scratch is chosen "
        "on these validation cases, per budget, in scratch's favour."
    )
    return ReportTable("Difference to scratch", rows, note)


def tabulate_for_paper(found: Findings) -> ReportTable:
    """One row per method and budget, as a paper prints it: mean and deviation, difference, p."""
    rows = []
    keys = ["budget", "schedule", "method"]
    groups = sorted(found.main.groupby(keys, sort=False), key=lambda item: item[0][0])
    for (budget, schedule, method), part in groups:
        runs = part.groupby(["fold", "repetition", "structure"])["dice"].mean()
        means = runs.groupby(level=["fold", "repetition"]).mean()
        row: dict[str, str] = {
            "labels": name_budget(budget, found.unit),
            "schedule": schedule,
            "method": method,
            "repetitions": str(len(means)),
            "Dice": _write_number(means.mean()),
            "standard deviation": _write_number(means.std()),
        }
        place = (method, schedule, budget)
        pairs = [e for e in found.at_equal_schedule if (e.method, e.schedule, e.budget) == place]
        effect = pairs[0].effect if pairs else None
        row["difference to scratch"] = "" if effect is None else write_signed(effect.mean)
        row["95 % interval"] = "" if effect is None else write_interval(effect)
        row["p (Holm)"] = "" if effect is None else write_p(effect.p_holm).removeprefix("= ")
        rows.append(row)
    return ReportTable("Table for a paper", rows)


def write_csv(table: ReportTable) -> str:
    """The table as CSV."""
    return pd.DataFrame(table.rows).to_csv(index=False)


def write_latex(table: ReportTable) -> str:
    """The table as a LaTeX `tabular`, which needs no package."""
    names = list(table.rows[0]) if table.rows else []
    lines = [names, *(list(row.values()) for row in table.rows)]
    body = [" & ".join(map(_escape_latex, line)) + r" \\" for line in lines]
    begin = rf"\begin{{tabular}}{{{'l' * len(names)}}}"
    return "\n".join([begin, body[0], r"\hline", *body[1:], r"\end{tabular}", ""])


def _escape_latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    }
    return "".join(special.get(letter, letter) for letter in text)


def _tabulate_labels_saved(found: Findings) -> ReportTable:
    """How many labels scratch needs for the Dice of a method."""
    rows = [
        {
            "labels of the method": name_budget(budget, found.unit),
            "method": method,
            "schedule": schedule,
            "its Dice": _write_number(saved.method[i]),
            "scratch needs": f"{saved.text(i)} {found.unit}",
        }
        for (method, schedule), saved in found.labels_saved.items()
        for i, budget in enumerate(saved.budgets)
    ]
    note = (
        "Read from scratch's monotone curve, linear in log2 of the labels; nothing is "
        "extrapolated beyond the budgets that were run."
    )
    return ReportTable("Labels saved", rows, note)


def _tabulate_cost(records: Sequence[CellRecord]) -> ReportTable:
    """Hours per arm: pre-training once, and fine-tuning or training per run."""
    timed = [each for each in records if each.hours is not None]
    cells, rows = {each.cell.id: each.cell for each in records}, []
    for method in dict.fromkeys(each.cell.method for each in timed):
        own = [each.cell for each in records if each.cell.method == method]
        needed = {stage for cell in own for stage in find_stages(cell, cells)}
        needed |= {cell.id for cell in own if cell.kind == "pretrain"}
        before = [each for each in timed if each.cell.id in needed]
        after = [e for e in timed if e.cell.method == method and e.cell.kind == "finetune"]
        both = [*before, *after]
        rows.append(
            {
                "method": method,
                "pre-training": _write_hours(before) if needed else "none",
                "training on labels": _write_hours(after),
                "hours in all": f"{sum(each.hours or 0.0 for each in both):.2f}",
                "device": ", ".join(sorted({each.device for each in both})),
                "taken from": ", ".join(sorted({each.source for each in both})),
            }
        )
    note = "Wall clock of all attempts, failed and interrupted ones included, with validation."
    return ReportTable("Cost", rows, note)


def _write_range(part: pd.DataFrame, column: str) -> str:
    values = part.drop_duplicates("cell")[column].dropna()
    if values.empty:
        return "n/a"
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _write_number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _write_hours(records: Sequence[CellRecord]) -> str:
    if not records:
        return "n/a"
    mean = sum(each.hours or 0.0 for each in records) / len(records)
    return f"{len(records)} x {mean:.2f} h"


def _write_seed(seed: int | None) -> str:
    return "" if seed is None else str(seed)
