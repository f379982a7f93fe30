"""`nnssl_study`: label-efficiency studies in one command: run, status, report, list."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields
from pathlib import Path

from nnssl.cli.command import command, read_each, table
from nnssl.studies.run.runner import Selection, run_study
from nnssl.studies.run.slurm import JobLimits
from nnssl.studies.run.spec import Study, find_studies, find_waiting, read_study
from nnssl.studies.run.status import read_status


def _add_options(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_run(commands.add_parser("run", help="run a study, or the rest of it"))
    status_parser = commands.add_parser("status", help="show where every cell stands")
    status_parser.set_defaults(action=_status)
    report_parser = commands.add_parser("report", help="write report.html and its tables")
    _add_report(report_parser)
    for parser_of_folder in (status_parser, report_parser):
        parser_of_folder.add_argument("folder", type=Path, help="folder of the study")
    commands.add_parser("list", help="list the studies").set_defaults(action=_list)


@command(
    "nnssl_study", __doc__, _add_options, example="run quick -o /data/study --dry-run", resumes=True
)
def main(options: Namespace) -> int:
    code: int = options.action(options)
    return code


def _add_run(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("study", help="name of a study (nnssl_study list) or a YAML file")
    add("-o", "--output", type=Path, required=True, help="folder of the study; continued if there")
    add(
        "--executor",
        choices=("local", "slurm"),
        default="local",
        help="where the cells run (%(default)s)",
    )
    add("--processes", type=int, help="cells side by side (default: one per GPU; CPU: one)")
    add("--devices", nargs="+", metavar="N", help="numbers of GPUs, or cpu (default: all GPUs)")
    add("--dry-run", action="store_true", help="print commands and an estimate, run nothing")
    add(
        "--weights",
        nargs="+",
        type=_arm_and_file,
        metavar="METHOD=FILE",
        help="a file (folder, hf://owner/name) for a method that starts from one",
    )
    part = parser.add_argument_group("a part of the study; numbers beyond the file's extend it")
    add = part.add_argument
    add("--folds", nargs="+", type=int, metavar="F", help="these folds")
    add("--repetitions", type=int, metavar="N", help="the first N")
    add("--budgets", nargs="+", type=_number, metavar="K", help="these label budgets")
    add("--only", nargs="+", metavar="METHOD", help="these methods; scratch is one")
    add = parser.add_argument_group("--executor slurm (needs submitit)").add_argument
    add("--partition", help="of the cluster")
    add("--hours", type=float, help="limit of a job (%(default)s)")
    add("--memory", type=int, help="GB of a job (%(default)s)")
    add("--gpus-per-task", type=int, help="0: CPU (%(default)s)")
    add("--cpus-per-task", type=int, help="processors of a job (%(default)s)")
    parser.set_defaults(action=_run, **vars(JobLimits()))


def _add_report(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--no-images", action="store_true", help="leave out the overlays, which show patients")
    add("--markdown", action="store_true", help="print tables in Markdown, write no page")
    add("--tolerance", type=float, default=2.0, metavar="MM", help="of NSD (%(default)s mm)")
    parser.set_defaults(action=_report)


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value == int(value) else value


def _arm_and_file(text: str) -> tuple[str, str]:
    method, sign, file = text.partition("=")
    if not (method and sign and file):
        raise ArgumentTypeError(f"found {text!r}, allowed: METHOD=FILE")
    return method, file


def _run(options: Namespace) -> int:
    jobs = None
    if options.executor == "slurm":
        jobs = JobLimits(**{each.name: getattr(options, each.name) for each in fields(JobLimits)})
    return run_study(
        options.study,
        options.output,
        Selection(options.folds, options.repetitions, options.budgets, options.only),
        processes=options.processes,
        devices=options.devices,
        jobs=jobs,
        dry_run=options.dry_run,
        weights=dict(options.weights or ()),
    )


def _status(options: Namespace) -> int:
    found = read_status(options.folder)
    for rows in (found.pretraining, found.finetuning):
        if rows:
            print(table(list(rows[0]), [list(row.values()) for row in rows]), end="\n\n")
    print("\n".join([*found.lines, ", ".join(f"{n} {word}" for word, n in found.counts.items())]))
    return 1 if "FAILED" in found.counts else 0


def _report(options: Namespace) -> int:
    from nnssl.studies.report.page import write_markdown, write_report

    if options.markdown:
        print(write_markdown(options.folder, options.tolerance))
    else:
        print(write_report(options.folder, not options.no_images, options.tolerance))
    return 0


def _list(_: Namespace) -> int:
    files = find_studies()
    found, problems = read_each(files, lambda name: read_study(files[name]))
    rows = [(name, *_row(study)) for name, study in found.items()]
    print(table(("study", "summary", "budgets", "methods"), rows))
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


def _row(study: Study) -> tuple[str, str, str]:
    waits = find_waiting(study)
    ready = ", ".join(method for method in study.pretraining if method not in waits)
    budgets = " ".join(f"{budget:g}" for budget in study.budgets)
    methods = f"{ready} ({len(waits)} wait)" if waits else ready
    return study.summary, f"{budgets} {study.unit}", methods.strip()


if __name__ == "__main__":
    sys.exit(main())
