"""``nnssl_probe``: what the frozen features of checkpoints know, beside a random network's.

Without --choose the validation cases of the fold are scored, never to choose by. With --choose
the checkpoints are compared inside the labelled patients, leaving one out after the other; no
validation case is opened.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnssl.cli.command import add_device, command, find_device, table
from nnssl.common.files import write_json
from nnssl.probe.settings import ProbeSettings

NMI = ("nmi", "nmi_balanced")
COLUMNS = ("dice", "position_error", "position_chance", "effective_rank", "seconds")


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    defaults = ProbeSettings()
    add("dataset", help="nnU-Net dataset, id or name")
    add("configuration", help="for example 2d or 3d_fullres")
    add("fold", type=int, help="number of the fold")
    add("-p", default="nnUNetPlans", dest="plans", help="plans (%(default)s)")
    add("--weights", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints")
    add("--reference", type=Path, metavar="FILE", help="another checkpoint, as a yardstick")
    default = defaults.probe_patients
    add("--patients", type=int, default=default, metavar="N", help="labelled (%(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="of the (first) draw (%(default)s)")
    add(
        "--draws",
        type=int,
        default=defaults.probe_draws,
        metavar="R",
        help="draws of patients (%(default)s)",
    )
    default = defaults.probe_volumes
    add("--volumes", type=int, default=default, metavar="V", help="to score, at most (%(default)s)")
    add("--clusters", type=int, metavar="K", help="also the NMI of K k-means clusters and labels")
    add("--choose", action="store_true", help="print the best file, judged by labelled patients")
    add("-o", type=Path, dest="output", metavar="FILE", help="write the record, e.g. probe.json")
    add("--overwrite", action="store_true", help="replace FILE")
    add_device(parser)


@command("nnssl_probe", __doc__, _add_options, example="27 2d 0 --weights checkpoint_final.pth")
def main(options: Namespace) -> None:
    from nnssl.data.labels import LabelBudget
    from nnssl.probe.checkpoints import choose_checkpoint, probe_checkpoints
    from nnssl.probe.fold import ProbeFold
    from nnssl.probe.probe import Probe

    if options.output is not None and options.output.exists() and not options.overwrite:
        raise ValueError(f"-o: {options.output} exists; give another name, or --overwrite")
    fold = ProbeFold.find(options.dataset, options.configuration, options.fold, options.plans)
    device = find_device(options)
    if options.choose:
        budget = LabelBudget(patients=options.patients, seed=options.seed)
        record = choose_checkpoint(fold, options.weights, budget, device)
    else:
        settings = ProbeSettings(
            probe_patients=options.patients,
            probe_draws=options.draws,
            probe_volumes=options.volumes,
        )
        probe = Probe(fold, settings, device, options.seed, options.clusters)
        record = probe_checkpoints(probe, options.weights, options.reference)
    if options.output is not None:
        write_json(options.output, record)
    if options.choose:
        rows = [[file, _number(value)] for file, value in record["dice"].items()]
        print(table(("encoder", "dice on left-out labelled patients"), rows))
        print(f"chosen: {record['chosen']}")
    else:
        _print_scores(record, COLUMNS if options.clusters is None else (*COLUMNS, *NMI))


def _print_scores(record: Mapping[str, Any], columns: Sequence[str]) -> None:
    encoders: Mapping[str, Any] = record["encoders"]
    structures = list(next(iter(encoders.values())).get("dice_per_structure", {}))
    rows = [
        [
            name,
            *(_number(entry.get(column)) for column in columns),
            *(_number(entry.get("dice_per_structure", {}).get(each)) for each in structures),
        ]
        for name, entry in encoders.items()
    ]
    print(table(("encoder", *columns, *structures), rows))
    for name, entry in record["checkpoints"].items():
        for reason in entry["contamination"]:
            print(f"CONTAMINATED: {name}: {reason}")
        for reason in entry["cannot_be_told"]:
            print(f"contamination cannot be told: {name}: {reason}")
    print(record["why_no_labels"] or "Scored on validation cases: do not choose by it (--choose)")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
