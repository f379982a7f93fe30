"""`nnssl_trainers`: lists the trainers that nnSSL adds to nnU-Net, shows one, checks a file."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnssl.cli.command import command, read_each, table
from nnssl.common.environment import set_variables
from nnssl.config import RawConfig, find_configs, read_config
from nnssl.config.files import CONFIG_FOLDERS, user_folders

COLUMNS = ("family", "summary", "paper", "dimensions", "trains")


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="show this trainer whole; without it: list all")
    add("--knobs", metavar="NAME", help="print only what can be set in one trainer")
    add("--bibtex", metavar="NAME", help="print the citation of one trainer")
    add("--check", metavar="FILE", help="check a YAML file as a run would, without a run")
    add("--pages", metavar="FOLDER", help="write a page per shipped trainer (docs/trainers)")


@command(
    "nnssl_trainers",
    "Lists the trainers that nnUNetv2_train -tr accepts after nnssl_register. Your own YAML files "
    "count too: name their folder in the variable nnssl_configs.",
    _add_options,
    example="nnSSLMAETrainer",
)
def main(options: Namespace) -> int:
    if options.bibtex:
        return _print_citation(options.bibtex)
    if options.check:
        return _check(Path(options.check))
    if not (options.name or options.knobs or options.pages):
        return _list()
    from nnssl.cli import trainers_shown as shown  # loads torch and nnU-Net

    if options.pages:
        print(f"{shown.write_pages(Path(options.pages))} pages in {options.pages}")
    elif options.knobs:
        print(table(shown.KNOB_COLUMNS, shown.bind_whole(options.knobs)[1]))
    else:
        print(shown.as_text(shown.show_trainer(options.name)))
    return 0


def _check(file: Path) -> int:
    """Reads and binds a file as a run of it would, in its own folder and today's environment."""
    if not file.is_file():
        raise ValueError(f"--check: {file} is no file")
    folders = os.pathsep.join([str(file.resolve().parent), *map(str, user_folders())])
    with set_variables({CONFIG_FOLDERS: folders}):
        from nnssl.training.factory import check_trainer

        config = check_trainer(file.stem)
    print(f"{file}: a run would take it, as a trainer of kind {config.kind}.")
    for path, value in config.overrides.items():
        print(f"nnssl_overrides of this shell: {path} = {value!r}")
    print(f"With a dataset, ten dry steps are the next check: nnssl_estimate -tr {file.stem} ...")
    return 0


def _print_citation(name: str) -> int:
    entry = read_config(name).about.get("bibtex")
    if not entry:
        raise ValueError(f"{name} has no about.bibtex")
    print(str(entry).rstrip())
    return 0


def _list() -> int:
    names = find_configs()
    found, problems = read_each(names, read_config)
    configs = sorted(found.values(), key=lambda c: (c.kind != "pretrain", _text(c, "family")))
    rows = [[config.name, *(_text(config, column) for column in COLUMNS)] for config in configs]
    for name in sorted(names.keys() - found.keys()):
        rows.append([name, "BROKEN", "see below", *[""] * (len(COLUMNS) - 2)])
    print(table(("-tr", *COLUMNS), rows))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _text(config: RawConfig, column: str) -> str:
    return str(config.about.get(column, ""))
