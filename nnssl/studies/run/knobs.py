"""Knobs of a study's runs: their text, their meaning for the length of a run, their check."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from nnssl.common.checks import plain
from nnssl.common.environment import read_variable
from nnssl.config import CONFIG_FOLDERS, bind, read_config
from nnssl.config.files import parse_yaml
from nnssl.training.finetuning_settings import FinetuningSettings
from nnssl.training.settings import PretrainingSettings

if TYPE_CHECKING:
    from nnssl.studies.run.grid import Cell


def overrides_text(overrides: Mapping[str, Any]) -> str:
    """The text of `nnssl_overrides`, which gives these values back."""
    return " ".join(shlex.quote(f"{knob}={_text(value)}") for knob, value in overrides.items())


def schedule_of(
    trainer: str, kind: Literal["pretrain", "finetune"], overrides: Mapping[str, Any]
) -> tuple[int, int]:
    """Epochs, and optimiser steps per epoch, of a trainer with overrides."""
    defaults = PretrainingSettings() if kind == "pretrain" else FinetuningSettings()
    knobs = ("num_epochs", "num_iterations_per_epoch")
    values = {knob: getattr(defaults, knob) for knob in knobs}
    values |= {knob: v for knob, v in _training_section(trainer).items() if knob in values}
    for knob, value in overrides.items():
        if knob.removeprefix("training.") in values:
            values[knob.removeprefix("training.")] = value
    return values["num_epochs"], values["num_iterations_per_epoch"]


def check_overrides(cells: list[Cell]) -> None:
    """Binds the overrides of every run to its trainer, as the run itself would.

    Raises:
        ValueError: names every problem at once.
    """
    if problems := list(dict.fromkeys(_problems(cells))):
        raise ValueError("The study's runs would stop at once:\n" + "\n".join(problems))


def _problems(cells: list[Cell]) -> Iterator[str]:
    from nnssl.training import finetuner, pretraining_setup  # they load torch and nnU-Net

    schemas = {
        "pretrain": (pretraining_setup.SCHEMA, pretraining_setup.GIVEN),
        "finetune": (finetuner.SCHEMA, ()),
    }
    for cell in cells:
        raw = read_config(cell.trainer)
        if raw.kind != cell.kind:
            yield f"{cell.method}: {cell.trainer} is a trainer of kind {raw.kind}, not {cell.kind}"
            continue
        schema, given = schemas[cell.kind]
        try:
            bind(raw, schema, given, overrides=overrides_text(cell.overrides))
        except ValueError as error:
            yield f"{cell.method}: {error}"


def _training_section(trainer: str) -> dict[str, Any]:
    return _section_of(trainer, read_variable(CONFIG_FOLDERS))


@cache
def _section_of(trainer: str, _folders: str | None) -> dict[str, Any]:
    """`training` of a trainer's file; the folders that are searched are a part of the key."""
    return dict(read_config(trainer).sections.get("training") or {})


def _text(value: Any) -> str:
    """YAML of one value on one line; plain words stand without quotation marks."""
    if isinstance(value, str) and value.isidentifier() and parse_yaml(value, "") == value:
        return value
    return json.dumps(plain(value))
