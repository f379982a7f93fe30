"""How long a study takes, from its own finished cells or from a stated assumption."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from nnssl.studies.run import attempts
from nnssl.studies.run.attempts import Bench
from nnssl.studies.run.grid import Cell

SECONDS_PER_STEP = 0.15  # assumed; small plans on one core, or default plans on a GPU


def estimate(bench: Bench, cells: Sequence[Cell], processes: int) -> str:
    """One or more lines: hours of what is not done yet, and where the figure comes from."""
    rest = [cell for cell in cells if not bench.is_done(cell)]
    rates = {kind: seconds_per_step(bench, cells, kind) for kind in ("pretrain", "finetune")}
    seconds = sum(cell.steps() * (rates[cell.kind] or SECONDS_PER_STEP) for cell in rest)
    hours = seconds / 3600
    steps = sum(cell.steps() for cell in rest)
    sources = [
        f"{kind}: {rate:.3f} s per step, median of this study's finished cells"
        if rate
        else f"{kind}: {SECONDS_PER_STEP} s per step ASSUMED, no cell has finished here yet"
        for kind, rate in rates.items()
        if any(cell.kind == kind for cell in rest)
    ]
    return "\n".join(
        [
            f"{len(rest)} of {len(cells)} cells to do, {steps} steps: about {hours:.1f} hours of "
            f"one process, {hours / processes:.1f} with {processes} side by side",
            *sources,
        ]
    )


def seconds_per_step(bench: Bench, cells: Sequence[Cell], kind: str) -> float | None:
    """Median over the finished cells of a kind, validation included; None without any."""
    rates = []
    for cell in cells:
        past = attempts.attempts(cell.folder(bench.folder))
        if cell.kind == kind and past and bench.is_done(cell):
            rates.append(sum(entry["seconds"] for entry in past) / cell.steps())
    return median(rates) if rates else None
