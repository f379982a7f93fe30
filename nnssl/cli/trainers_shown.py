"""A trainer shown whole, as text or Markdown: what it learns, needs and gained, every knob."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnssl.cli.command import table
from nnssl.common.files import atomic_path
from nnssl.config import Config, RawConfig, bind, find_configs, read_config
from nnssl.config.explain import Explanation, explain_knobs
from nnssl.config.files import INSTALLED, read_yaml

KNOB_COLUMNS = ("knob", "value", "allowed", "meaning")
FOUND = (
    "a finished pre-training run of the same dataset, plans, configuration and fold, or a file "
    "(weights.source, or the environment variable nnssl_pretrained_weights)"
)
GENERATED = "<!-- written by nnssl_trainers --pages; do not edit -->"


@dataclass(frozen=True)
class Shown:
    """A trainer with everything that is said of it.

    Attributes:
        facts: title -> text, in the order in which they are shown.
        knobs: section -> its knobs.
        parent: the trainer that its YAML extends, if it does.
    """

    name: str
    summary: str
    facts: Mapping[str, str]
    knobs: Mapping[str, Sequence[Explanation]]
    parent: str | None
    commands: Sequence[str]


def bind_whole(name: str) -> tuple[Config, list[Explanation]]:
    """A trainer's configuration and its knobs, views that its objective makes by default too."""
    from nnssl.objectives import find_objective  # loads torch
    from nnssl.training.factory import schema_of  # and nnU-Net

    raw = read_config(name)
    schema, given = schema_of(raw.kind)
    config = bind(raw, schema, given, overrides="")
    if config.sections.get("views") == {}:
        objective = find_objective(*config.chosen("objective"))
        raw = replace(raw, sections={**raw.sections, "views": objective.default_views})
        config = bind(raw, schema, given, overrides="")
    return config, list(explain_knobs(config, schema, given))


def show_trainer(name: str) -> Shown:
    """Everything that is said of a trainer; ValueError where its file is broken."""
    raw = read_config(name)
    config, explained = bind_whole(name)
    knobs: dict[str, list[Explanation]] = {}
    for each in explained:
        knobs.setdefault(each.knob.partition(".")[0], []).append(each)
    about = {key: str(value) for key, value in raw.about.items()}
    facts = {
        "paper": about.get("paper", ""),
        "trains": about.get("trains", ""),
        "images": about.get("dimensions", ""),
        **dict(_find_needs(config)),
        **_find_measured(name),
        "file": ", which extends ".join(map(_shorten, raw.sources)),
    }
    return Shown(
        name,
        about.get("summary", ""),
        {title: text for title, text in facts.items() if text},
        knobs,
        raw.layers[0][1].get("extends"),
        tuple(_make_commands(raw)),
    )


def _find_needs(config: Config) -> Iterator[tuple[str, str]]:
    """What a run needs of data and weights, as far as the configuration says it."""
    sections = config.sections
    if config.kind != "pretrain":
        source = sections["weights"]["source"]
        yield "weights", "none: it starts at random" if source == "none" else FOUND
        more = ", and images without labels" if config.kind == "semi_supervised" else ""
        yield "labels", f"those of the fold, or of a budget (section labels){more}"
        return
    yield "labels", "none"
    initial = sections["training"]["initial_weights"]
    if initial is not None:
        yield "weights", f"{initial}: its finished run on the same fold (training.initial_weights)"
    yield "volumes", _describe_sampling(config)
    yield (
        "views",
        ", ".join(f"{group['count']} x {name}" for name, group in sections["views"].items()),
    )
    yield "channels", "any number"


def _describe_sampling(config: Config) -> str:
    from nnssl.objectives import find_objective

    sampling, objective = config.sections["sampling"], find_objective(*config.chosen("objective"))
    mode, parts = sampling["mode"] or objective.sampling, sampling["partitions"]
    if mode == "random":
        return "any images; positions in a volume are not needed"
    origin = ", equally many of every dataset of origin" if mode == "balanced" else ""
    return (
        f"volumes of which {parts} parts along the position axis can be drawn{origin}; pictures "
        "have none (sampling.mode, sampling.partitions)"
    )


def _find_measured(name: str) -> dict[str, str]:
    """What docs/results.md reports; nothing where nothing was measured."""
    measured = read_yaml(INSTALLED / "measured.yaml")
    gain, cost = measured["gains"].get(name, {}), measured["costs"].get(name)
    text = f"{cost} times stock nnU-Net's time for as many voxels (CPU, small 2D plan)"
    return {"measured gain": gain.get("text", ""), "cost": text if cost is not None else ""}


def _shorten(source: str) -> str:
    """The path of a shipped file begins at `nnssl_configs`."""
    file = Path(source)
    inside = file.is_relative_to(INSTALLED)
    return file.relative_to(INSTALLED.parent).as_posix() if inside else source


def _make_commands(raw: RawConfig) -> Iterator[str]:
    two = str(raw.about.get("dimensions", "")).startswith("2D only")
    where = f"nnUNetv2_train DATASET {'2d' if two else 'CONFIGURATION'} FOLD"
    yield f"{where} -tr {raw.name}"
    if raw.kind == "pretrain":
        yield f"{where} -tr nnSSLFinetuneTrainer"


# ------------------------------------------------------------------ as text


def as_text(shown: Shown) -> str:
    """For a terminal."""
    facts = [(title, text) for title, text in shown.facts.items()]
    lines = [f"{shown.name}: {shown.summary}", "", *map(_indent, shown.commands), ""]
    width = max(len(title) for title, _ in facts) + 2
    for title, text in facts:
        first = title.ljust(width)
        lines += textwrap.wrap(
            first + text, 110, subsequent_indent=" " * width, break_on_hyphens=False
        )
    for section, knobs in shown.knobs.items():
        lines += ["", f"Section {section}", table(KNOB_COLUMNS, knobs)]
    lines += ["", *_say_how_to_change(shown.name)]
    return "\n".join(lines)


def _indent(text: str) -> str:
    return f"  {text}"


def _say_how_to_change(name: str) -> list[str]:
    return [
        f"A YAML file that says `extends: {name}` changes them for a trainer of your own "
        "(nnssl_trainers --check FILE checks it), nnssl_overrides='KNOB=VALUE ...' for one run."
    ]


# ------------------------------------------------------------------ as pages


def make_pages() -> dict[str, str]:
    """File name -> content: a page per shipped trainer, and their list."""
    names = [name for name, file in find_configs().items() if file.is_relative_to(INSTALLED)]
    shown = {name: show_trainer(name) for name in names}
    pages = {f"{name}.md": _make_page(each, shown) for name, each in shown.items()}
    rows = [(f"[{n}]({n}.md)", each.summary) for n, each in shown.items()]
    title = "# The trainers\n\nEvery knob of each. [Which knob for which trouble](../knobs.md)"
    return {**pages, "README.md": f"{GENERATED}\n{title}\n\n{_table(('-tr', 'learns'), rows)}\n"}


def write_pages(folder: Path) -> int:
    """Writes the pages, removes those of trainers that are gone, and returns how many there are."""
    pages = make_pages()
    for name, content in pages.items():
        with atomic_path(folder / name) as part:
            part.write_text(content, encoding="utf-8")
    for file in folder.glob("nnSSL*.md"):
        if file.name not in pages:
            file.unlink()
    return len(pages)


def _make_page(shown: Shown, others: Mapping[str, Shown]) -> str:
    facts = "\n".join(f"- **{title}**: {text}" for title, text in shown.facts.items())
    commands = "\n".join(shown.commands)
    parts = [f"{GENERATED}\n# {shown.name}", shown.summary, f"```\n{commands}\n```", facts]
    parent = None if shown.parent is None else others.get(shown.parent)
    if parent is not None:
        known = {each.knob: each.value for knobs in parent.knobs.values() for each in knobs}
        differ = [e for k in shown.knobs.values() for e in k if known.get(e.knob) != e.value]
        link = f"[{parent.name}]({parent.name}.md)"
        parts += [f"All other knobs are those of {link}.", _table(KNOB_COLUMNS, differ)]
    else:
        for section, knobs in shown.knobs.items():
            parts += [f"## {section}", _table(KNOB_COLUMNS, knobs)]
    return "\n\n".join(part for part in [*parts, *_say_how_to_change(shown.name)] if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
