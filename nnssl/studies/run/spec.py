"""What a study says: methods x label budgets x schedules x repetitions x folds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnssl.common.checks import near
from nnssl.config import Config, Groups, RawConfig, Schema, bind, find_configs
from nnssl.studies.run.files import read_yaml, study_file

Unit = Literal["patients", "volumes", "slices", "percentage"]
SCRATCH = "scratch"
GIVEN = ("name", "summary", "paper", "differs", "pretraining", "schedules", "scratch_schedules")
SET_BY_THE_STUDY = ("training.seed", "labels")


@dataclass(frozen=True)
class PretrainingArm:
    """One method: how it pre-trains, and what its fine-tuning does differently from scratch.

    Attributes:
        trainer: name of the pre-training trainer.
        overrides: knobs of the pre-training, as in `nnssl_overrides`.
        seeds: seeds of the pre-training; repetition r starts from that of `seeds[r % len(seeds)]`.
        finetuning: knobs of the fine-tuning from it, for instance `weights.part: trained`, or
            `freeze_encoder_epochs: 2`; scratch does not get them.
        dataset: pre-trains on another dataset (id or name); null: on the study's own.
        plans: plans of the pre-training; null: the study's own.
        fold: fold of the pre-training; null: that of the fine-tuning.
        waits: `trainer`: the arm is left out until its trainer exists; `dataset`: until the file
            names a dataset here.
    """

    trainer: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    dataset: int | str | None = None
    plans: str | None = None
    fold: int | Literal["all"] | None = None
    waits: Literal["trainer", "dataset"] | None = None


@dataclass(frozen=True)
class FinetuningArm:
    """One fine-tuning schedule; scratch is trained by the same one.

    Attributes:
        trainer: name of the fine-tuning trainer.
        scratch_trainer: name of its twin with random weights.
        overrides: knobs of both, as in `nnssl_overrides`.
    """

    trainer: str = "nnSSLFinetuneTrainer"
    scratch_trainer: str = "nnSSLScratchTrainer"
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScratchArm:
    """A further schedule that scratch alone is tried with.

    Attributes:
        trainer: name of the trainer with random weights.
        overrides: knobs, as in `nnssl_overrides`.
    """

    trainer: str = "nnSSLScratchTrainer"
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A checked study; `nnssl.studies.run.grid.cells` lists its runs.

    Attributes:
        name: stem of the file, or its `about.name`.
        summary: one line.
        paper: source of the protocol.
        differs: how the study differs from that protocol.
        pretraining: method -> arm.
        schedules: name -> fine-tuning schedule.
        scratch_schedules: name -> schedule for scratch only.
        dataset: id or name in nnU-Net.
        configuration: `2d`, `3d_fullres`, ...
        plans: name of the plans.
        folds: numbers of the folds.
        unit: of the budgets: `patients`, `volumes`, `slices` or `percentage` (of the patients).
        budgets: numbers of labels; with one seed the smaller lies in the larger.
        repetitions: repetition r draws labelled cases and fine-tuning by seed r.
        scratch_added_steps: also trains scratch with the steps of the pre-training added.
    """

    name: str
    summary: str
    pretraining: Mapping[str, PretrainingArm]
    schedules: Mapping[str, FinetuningArm]
    dataset: int | str
    budgets: Sequence[int | float]
    unit: Unit = "patients"
    configuration: str = "2d"
    plans: str = "nnUNetPlans"
    folds: Sequence[int] = (0,)
    repetitions: int = 3
    scratch_added_steps: bool = False
    scratch_schedules: Mapping[str, ScratchArm] = field(default_factory=dict)
    paper: str = ""
    differs: str = ""


SCHEMA: Schema = {
    "study": Study,
    "pretraining": Groups(PretrainingArm),
    "schedules": Groups(FinetuningArm),
    "scratch_schedules": Groups(ScratchArm),
}


def read_study(name_or_path: str | Path) -> Study:
    """Reads and checks a study.

    Args:
        name_or_path: a YAML file, or the name of one in a user's folder (environment variable
            `nnssl_configs`) or shipped.

    Raises:
        ValueError: names every problem at once, with file, knob, value and what is allowed.
    """
    file = study_file(name_or_path)
    raw = read_yaml(file)
    study = _build(bind(raw, SCHEMA, GIVEN, overrides=""))
    if problems := list(_problems(study)):
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"{file} has {count}:\n{lines}")
    return study


def to_raw(study: Study) -> RawConfig:
    """The study as the content of a file."""
    values = vars(study)
    arms = {name: values[name] for name in SCHEMA if name != "study"}
    about = {k: values[k] for k in ("name", "summary", "paper", "differs")}
    sections = {
        "study": {k: v for k, v in values.items() if k not in GIVEN},
        **{
            name: {arm: vars(knobs) for arm, knobs in group.items()} for name, group in arms.items()
        },
    }
    return RawConfig(study.name, "study", about, sections, ())


def slug(name: str) -> str:
    """A name as a part of file names: G^D- becomes gdminus."""
    text = re.sub(r"-$", "minus", re.sub(r"\+$", "plus", name.strip().lower().replace("^", "")))
    return re.sub(r"[^a-z0-9.]+", "_", text).strip("_")


def waiting(study: Study) -> dict[str, str]:
    """Method -> why it is left out, for the arms that wait."""
    known = find_configs()
    reasons = {}
    for method, arm in study.pretraining.items():
        if arm.waits == "trainer" and arm.trainer not in known:
            reasons[method] = f"waits for the trainer {arm.trainer}, which does not exist yet"
        elif arm.waits == "dataset" and arm.dataset is None:
            reasons[method] = (
                f"waits for a dataset: copy the study and give `dataset:` in pretraining.{method}"
            )
    return reasons


def _build(config: Config) -> Study:
    sections = config.sections
    arms: dict[str, Any] = {
        name: {arm: kind(**knobs) for arm, knobs in sections[name].items()}
        for name, kind in (
            ("pretraining", PretrainingArm),
            ("schedules", FinetuningArm),
            ("scratch_schedules", ScratchArm),
        )
    }
    about: dict[str, Any] = {"name": config.name, "summary": "", **config.about}
    knobs: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in sections["study"].items()
    }
    return Study(**about, **knobs, **arms)


def _problems(study: Study) -> Iterator[str]:
    """What the signatures cannot say."""
    yield from _grid_problems(study)
    yield from _name_problems(study)
    yield from _trainer_problems(study)
    for path, overrides in _all_overrides(study):
        for knob in overrides:
            full = "training.seed" if knob == "seed" else knob
            if any(full == own or full.startswith(f"{own}.") for own in SET_BY_THE_STUDY):
                yield f"{path}.{knob}: set by the study itself (seeds, unit and budgets); remove it"


def _grid_problems(study: Study) -> Iterator[str]:
    largest = 100 if study.unit == "percentage" else float("inf")
    whole = study.unit != "percentage"
    for budget in study.budgets:
        if not 0 < budget <= largest or (whole and budget != int(budget)):
            allowed = "above 0 to 100" if not whole else "whole numbers from 1"
            yield f"study.budgets: found {budget} {study.unit}, allowed: {allowed}"
    for name, values in (("budgets", study.budgets), ("folds", study.folds)):
        if not values or len(set(values)) != len(values):
            yield f"study.{name}: found {list(values)}, allowed: at least one, none twice"
    if any(fold < 0 for fold in study.folds):
        yield f"study.folds: found {list(study.folds)}, allowed: from 0"
    if study.repetitions < 1:
        yield f"study.repetitions: found {study.repetitions}, allowed: from 1"
    if study.unit == "slices" and study.configuration.startswith("3d"):
        yield f"study.unit: slices with configuration {study.configuration!r}; allowed with 2d only"
    if not study.schedules:
        yield "schedules: none; at least one fine-tuning schedule is needed"
    for method, arm in study.pretraining.items():
        if not arm.seeds:
            yield f"pretraining.{method}.seeds: empty, allowed: at least one seed"


def _name_problems(study: Study) -> Iterator[str]:
    """Names become parts of folder names, where they must stay distinct."""
    methods = [SCRATCH, *study.pretraining]
    schedules = [*study.schedules, *study.scratch_schedules]
    for section, names in (("pretraining", methods), ("schedules", schedules)):
        seen: dict[str, str] = {}
        for name in names:
            short = slug(name)
            if not short or short in seen:
                other = f" as {seen[short]!r}" if short else ""
                yield f"{section}.{name}: its folders would be named {short!r}{other}; rename it"
            seen[short] = name


def _trainer_problems(study: Study) -> Iterator[str]:
    known = find_configs()
    waits = waiting(study)
    named = [(f"pretraining.{m}.trainer", arm.trainer, m) for m, arm in study.pretraining.items()]
    for name, arm in study.schedules.items():
        named += [(f"schedules.{name}.trainer", arm.trainer, "")]
        named += [(f"schedules.{name}.scratch_trainer", arm.scratch_trainer, "")]
    named += [
        (f"scratch_schedules.{name}.trainer", arm.trainer, "")
        for name, arm in study.scratch_schedules.items()
    ]
    for path, trainer, method in named:
        if trainer not in known and method not in waits:
            yield (
                f"{path} = {trainer!r}: there is no such trainer{near(trainer, known)}; "
                f"known: {', '.join(known)}. A method that does not exist yet says waits: trainer"
            )


def _all_overrides(study: Study) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for method, arm in study.pretraining.items():
        yield f"pretraining.{method}.overrides", arm.overrides
        yield f"pretraining.{method}.finetuning", arm.finetuning
    for name, schedule in study.schedules.items():
        yield f"schedules.{name}.overrides", schedule.overrides
    for name, scratch in study.scratch_schedules.items():
        yield f"scratch_schedules.{name}.overrides", scratch.overrides
