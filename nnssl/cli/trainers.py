"""`nnssl_trainers`: prints the trainers that nnSSL adds to nnU-Net, or the knobs of one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from nnssl.cli.command import command
from nnssl.cli.table import table
from nnssl.config import RawConfig, bind, find_configs, read_config
from nnssl.config.explain import Explanation, explain_knobs

COLUMNS = ("family", "summary", "paper", "dimensions", "trains")


@command("nnssl_trainers")
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or one trainer's knobs or citation; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="nnssl_trainers",
        description="Lists the trainers that nnUNetv2_train -tr accepts after nnssl_register. "
        "Your own YAML files count too: name their folder in the variable nnssl_configs.",
    )
    parser.add_argument("--bibtex", metavar="NAME", help="print the citation of one trainer")
    parser.add_argument(
        "--knobs", metavar="NAME", help="print what can be set in one trainer, and what it means"
    )
    options = parser.parse_args(arguments)
    if options.knobs:
        return _print_knobs(options.knobs)
    return _bibtex(options.bibtex) if options.bibtex else _list()


def _print_knobs(name: str) -> int:
    knobs = explain_trainer(name)
    print(table(("knob", "value", "allowed", "meaning"), knobs))
    print(
        f"\nA YAML file that says `extends: {name}` changes them for a trainer of your own, "
        "nnssl_overrides='KNOB=VALUE ...' for one run."
    )
    return 0


def explain_trainer(name: str) -> list[Explanation]:
    """Every knob of a trainer, the views included that its objective makes by default."""
    from nnssl.objectives import OBJECTIVES  # loads torch
    from nnssl.training.factory import schema_of  # and nnU-Net

    raw = read_config(name)
    schema, given = schema_of(raw.kind)
    config = bind(raw, schema, given, overrides="")
    if config.sections.get("views") == {}:
        objective = OBJECTIVES[config.chosen("objective")[0]]
        raw = replace(raw, sections={**raw.sections, "views": objective.default_views})
        config = bind(raw, schema, given, overrides="")
    return list(explain_knobs(config, schema, given))


def _bibtex(name: str) -> int:
    entry = read_config(name).about.get("bibtex")
    if not entry:
        raise ValueError(f"{name} has no about.bibtex")
    print(str(entry).rstrip())
    return 0


def _list() -> int:
    """A broken file is told below the table and does not hide the others."""
    configs: list[RawConfig] = []
    problems = []
    for name in find_configs():
        try:
            configs.append(read_config(name))
        except ValueError as error:
            problems.append(str(error))
    configs.sort(key=lambda config: (config.kind != "pretrain", _text(config, "family")))
    rows = [[config.name, *(_text(config, column) for column in COLUMNS)] for config in configs]
    print(table(("-tr", *COLUMNS), rows))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _text(config: RawConfig, column: str) -> str:
    return str(config.about.get(column, ""))


if __name__ == "__main__":
    sys.exit(main())
