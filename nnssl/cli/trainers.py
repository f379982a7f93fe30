"""`nnssl_trainers`: prints the trainers that nnSSL adds to nnU-Net, or the knobs of one."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace

from nnssl.cli.command import command, read_each, table
from nnssl.config import RawConfig, bind, find_configs, read_config
from nnssl.config.explain import Explanation, explain_knobs

COLUMNS = ("family", "summary", "paper", "dimensions", "trains")


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--bibtex", metavar="NAME", help="print the citation of one trainer")
    text = "print what can be set in one trainer, and what it means"
    add("--knobs", metavar="NAME", help=text)


@command(
    "nnssl_trainers",
    "Lists the trainers that nnUNetv2_train -tr accepts after nnssl_register. Your own YAML files "
    "count too: name their folder in the variable nnssl_configs.",
    _add_options,
    example="--knobs nnSSLMAETrainer",
)
def main(options: Namespace) -> int:
    if options.knobs:
        print(table(("knob", "value", "allowed", "meaning"), explain_trainer(options.knobs)))
        print(
            f"\nA YAML file that says `extends: {options.knobs}` changes them for a trainer of "
            "your own, nnssl_overrides='KNOB=VALUE ...' for one run."
        )
        return 0
    return _print_citation(options.bibtex) if options.bibtex else _list()


def explain_trainer(name: str) -> list[Explanation]:
    """Every knob of a trainer, the views included that its objective makes by default."""
    from nnssl.objectives import find_objective  # loads torch
    from nnssl.training.factory import schema_of  # and nnU-Net

    raw = read_config(name)
    schema, given = schema_of(raw.kind)
    config = bind(raw, schema, given, overrides="")
    if config.sections.get("views") == {}:
        objective = find_objective(*config.chosen("objective"))
        raw = replace(raw, sections={**raw.sections, "views": objective.default_views})
        config = bind(raw, schema, given, overrides="")
    return list(explain_knobs(config, schema, given))


def _print_citation(name: str) -> int:
    entry = read_config(name).about.get("bibtex")
    if not entry:
        raise ValueError(f"{name} has no about.bibtex")
    print(str(entry).rstrip())
    return 0


def _list() -> int:
    found, problems = read_each(find_configs(), read_config)
    configs = sorted(found.values(), key=lambda c: (c.kind != "pretrain", _text(c, "family")))
    rows = [[config.name, *(_text(config, column) for column in COLUMNS)] for config in configs]
    print(table(("-tr", *COLUMNS), rows))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _text(config: RawConfig, column: str) -> str:
    return str(config.about.get(column, ""))
