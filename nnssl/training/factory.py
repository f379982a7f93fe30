"""A YAML file is a trainer: makes the trainer class of a configuration's name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from nnssl.config import TRAINER_PREFIX, Config, Schema, bind, read_config
from nnssl.training.uncaught import tell_alone

BASES = {
    "pretrain": ("nnssl.training.pretrainer", "nnSSLPretrainer"),
    "finetune": ("nnssl.training.finetuner", "nnSSLFinetuner"),
    "semi_supervised": ("nnssl.training.semi_supervised", "nnSSLSemiSupervised"),
}


@cache
def trainer_class(name: str) -> type:
    """Returns the trainer class that nnU-Net looks up as `-tr name`; always the same object.

    Raises:
        AttributeError: the name is not one of ours (nnU-Net then searches elsewhere).
        ValueError: the name is one of ours but no such file exists, or the file is broken.
    """
    tell_alone()
    if not name.startswith(TRAINER_PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raw = read_config(name)
    members = {"__doc__": raw.about.get("summary"), "config_name": name}
    return type(name, (_base(raw.kind),), members)


def check_trainer(name: str, overrides: str | None = None) -> Config:
    """The configuration of a trainer, checked as a run checks it before it reads any data.

    Args:
        name: of the trainer.
        overrides: as in the environment variable `nnssl_overrides`, which is read if this is None.

    Raises:
        ValueError: what the run would say.
    """
    kind = _base(read_config(name).kind)
    blank = kind.__new__(kind)  # a trainer of no dataset: what it makes of its settings needs none
    blank.config_name = name
    config = bind(read_config(name), kind.schema, kind.given, overrides)
    blank._apply(config)
    return config


def schema_of(kind: str) -> tuple[Schema, tuple[str, ...]]:
    """What the trainers of a kind bind to, and the arguments that code supplies; loads torch."""
    trainer = _base(kind)
    return trainer.schema, trainer.given


def _base(kind: str) -> Any:
    module, name = BASES[kind]
    return getattr(import_module(module), name)


def __getattr__(name: str) -> Any:
    """Lets pickle find a trainer class under this module."""
    return trainer_class(name)
