"""`nnssl_runs`: lists the pre-trainings under nnUNet_results, and the line that uses each."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnssl.cli.command import command, table
from nnssl.nnunet.paths import RESULTS, root_folder

if TYPE_CHECKING:
    from nnssl.nnunet.runs import Run

HEADER = ("", "trainer", "dataset", "plans", "configuration", "fold", "state", "epoch", "date")
METRICS = {
    "train_loss": "train loss",
    "val_loss": "val loss",
    "weight_change": "weights moved %",
    "effective_rank": "eff. rank",
    "probe_dice": "probe Dice",
}


def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", nargs="?", help="number or name of a dataset; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", action="store_true", help="write report.html of finished runs")


@command(
    "nnssl_runs",
    "Lists finished and unfinished pre-trainings under nnUNet_results with their last metrics, and "
    "the line that uses, continues or restarts each.",
    _add_options,
    example="27",
)
def main(options: Namespace) -> None:
    """Prints the runs; a broken one is a row with its problem."""
    from nnssl.nnunet.runs import list_runs

    runs = list_runs(root_folder(RESULTS), options.dataset)
    if options.report:
        from nnssl.training.run_report import write_run_report

        print("\n".join(str(write_run_report(r.folder)) for r in runs if r.state == "finished"))
        return
    print(json.dumps([run.to_dict() for run in runs], indent=2) if options.json else _text(runs))


def _text(runs: Sequence[Run]) -> str:
    if not runs:
        return "no pre-training run was found; nnssl_trainers lists what can be trained"
    shown = [key for key in METRICS if any(key in run.metrics for run in runs)]
    header = (*HEADER, *(METRICS[key] for key in shown))
    rows = [_row(number, run, shown) for number, run in enumerate(runs, 1)]
    lines = [f"{n}: {run.problem or run.command}" for n, run in enumerate(runs, 1)]
    return "\n".join([table(header, rows), "", *lines])


def _row(number: int, run: Run, shown: Sequence[str]) -> list[str]:
    place = [run.trainer, run.dataset, run.plans, run.configuration, run.fold, run.state]
    epochs = " of ".join("?" if n is None else str(n) for n in (run.epoch, run.epochs))
    return [str(number), *place, epochs, run.date, *(_metric(run, key) for key in shown)]


def _metric(run: Run, key: str) -> str:
    value = run.metrics.get(key)
    if value is None:
        return "-"
    return f"{100 * value:.0f}" if key == "weight_change" else f"{value:.3g}"
