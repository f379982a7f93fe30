"""What a study says (methods x label budgets x schedules x repetitions x folds), and its file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Gt, MinLen

from nnssl.common.checks import Count, Name, Rule, Whole, plain, suggest
from nnssl.common.files import atomic_path
from nnssl.config import Groups, RawConfig, Schema, bind, find_configs
from nnssl.config.files import INSTALLED, check_about, read_yaml, user_folders

Unit = Literal["patients", "volumes", "slices", "percentage"]
SCRATCH = "scratch"
FOLDER = "studies"  # of YAML files, in a user's folder and in the installed one
ABOUT = ("name", "summary", "paper", "differs")
ONCE = Rule(lambda values: len(set(values)) == len(values), "none twice")
INITIAL = {"training.initial_weights", "initial_weights"}
SET_BY_THE_STUDY = ("training.seed", "labels")
OF_PRETRAINING = ("overrides", "seeds", "dataset", "plans", "fold", "after")


@dataclass(frozen=True)
class PretrainingArm:
    """One method: how it pre-trains, and what its fine-tuning does differently from scratch.

    Attributes:
        trainer: name of the pre-training trainer; null: there are `weights` in the place of one.
        weights: a file (or folder, or `hf://owner/name`) that fine-tuning starts from; nothing is
            pre-trained then.
        sha256: of that file; written by the study, which then takes no other.
        overrides: knobs of the pre-training, as in `nnssl_overrides`.
        seeds: seeds of the pre-training; repetition r starts from that of `seeds[r % len(seeds)]`.
        finetuning: knobs of the fine-tuning from it, for instance `weights.part: trained`, or
            `freeze_encoder_epochs: 2`; scratch does not get them.
        dataset: pre-trains on another dataset (id or name); null: on the study's own.
        plans: plans of the pre-training; null: the study's own.
        fold: fold of the pre-training; null: that of the fine-tuning.
        after: an arm that stands above; the pre-training starts from its weights.
        measured: whether it is fine-tuned; a stage that others follow need not be.
        waits: `trainer`: the arm is left out until its trainer exists; `dataset`: until the file
            names a dataset here; `weights`: until a file is given, here or by `--weights`.
    """

    trainer: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: Annotated[Sequence[Whole], MinLen(1)] = (0,)
    finetuning: Mapping[str, Any] = field(default_factory=dict)
    dataset: int | Name | None = None
    plans: Name | None = None
    fold: Whole | Literal["all"] | None = None
    after: str | None = None
    measured: bool = True
    waits: Literal["trainer", "dataset", "weights"] | None = None
    weights: str | None = None
    sha256: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of weights, and pre-trains nothing."""
        return self.trainer is None


@dataclass(frozen=True)
class FinetuningArm:
    """One fine-tuning schedule; scratch is trained by the same one.

    Attributes:
        trainer: name of the fine-tuning trainer.
        scratch_trainer: name of the same trainer with random weights.
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
    """A checked study; `nnssl.studies.run.grid.list_cells` lists its runs.

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
    dataset: int | Name
    budgets: Annotated[Sequence[Annotated[int | float, Gt(0)]], MinLen(1), ONCE]
    unit: Unit = "patients"
    configuration: Name = "2d"
    plans: Name = "nnUNetPlans"
    folds: Annotated[Sequence[Whole], MinLen(1), ONCE] = (0,)
    repetitions: Count = 3
    scratch_added_steps: bool = False
    scratch_schedules: Mapping[str, ScratchArm] = field(default_factory=dict)
    paper: str = ""
    differs: str = ""


ARMS = {"pretraining": PretrainingArm, "schedules": FinetuningArm, "scratch_schedules": ScratchArm}
SCHEMA: Schema = {"study": Study, **{name: Groups(arm) for name, arm in ARMS.items()}}


def find_studies() -> dict[str, Path]:
    """Returns name -> file; a user's folders (`<folder>/studies/*.yaml`) come before the shipped.

    The environment variable `nnssl_configs` names a user's folders.
    """
    found: dict[str, Path] = {}
    for folder in (*user_folders(), INSTALLED):
        files = sorted((folder / FOLDER).glob("*.y*ml"))
        found = {file.stem: file for file in files} | found
    return dict(sorted(found.items()))


def read_study(name_or_path: str | Path) -> Study:
    """Reads and checks a YAML file, or the one of a name that `find_studies` finds.

    Raises:
        ValueError: names all problems of the file at once, with knob, value and what is allowed.
    """
    file = _find_file(name_or_path)
    raw = _read_yaml(file)
    sections = bind(raw, SCHEMA, (*ABOUT, *ARMS), overrides="").sections
    knobs = {k: tuple(v) if isinstance(v, list) else v for k, v in sections["study"].items()}
    for section, arm in ARMS.items():
        knobs[section] = {name: arm(**values) for name, values in sections[section].items()}
    study = Study(**{"name": raw.name, "summary": "", **raw.about, **knobs})
    checks = (_check_grid, _check_names, _check_trainers, _check_overrides, _check_stages)
    if problems := [problem for check in checks for problem in check(study)]:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"{file} has {count}:\n{lines}")
    return study


def write_study(file: Path, study: Study) -> None:
    """Writes what `read_study` reads, whole or not at all."""
    knobs = dict(vars(study))
    about = {key: knobs.pop(key) for key in ABOUT}
    arms = {key: {name: vars(arm) for name, arm in knobs.pop(key).items()} for key in ARMS}
    content = {"kind": "study", "about": about, "study": knobs, **arms}
    text = yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True)
    with atomic_path(file) as part:
        part.write_text(text, encoding="utf-8")


def slug(name: str) -> str:
    """A name as a part of file names: G^D- becomes gdminus."""
    text = re.sub(r"-$", "minus", re.sub(r"\+$", "plus", name.strip().lower().replace("^", "")))
    return re.sub(r"[^a-z0-9.]+", "_", text).strip("_")


def find_waiting(study: Study) -> dict[str, str]:
    """Method -> why it is left out, for the arms that wait and for those that follow them."""
    known, reasons = find_configs(), {}
    for method, arm in study.pretraining.items():
        if arm.waits == "trainer" and arm.trainer not in known:
            reasons[method] = f"waits for the trainer {arm.trainer}, which does not exist yet"
        elif arm.waits == "dataset" and arm.dataset is None:
            reasons[method] = (
                f"waits for a dataset: copy the study and give `dataset:` in pretraining.{method}"
            )
        elif arm.waits == "weights" and arm.weights is None:
            reasons[method] = (
                f"waits for a file of weights: nnssl_study run ... --weights '{method}=FILE' (or "
                "hf://owner/name, or `weights:` in a copy of the study)"
            )
        elif arm.after in reasons:
            reasons[method] = f"follows {arm.after}, which is left out"
    return reasons


def _find_file(name_or_path: str | Path) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = find_studies()
    if str(name_or_path) not in known:
        raise ValueError(
            f"there is no study {str(name_or_path)!r}{suggest(str(name_or_path), known)}; known: "
            f"{', '.join(known) or 'none'}; or give the path of a YAML file"
        )
    return known[str(name_or_path)]


def _read_yaml(file: Path) -> RawConfig:
    """Reads a file and checks its head; its sections are checked by `nnssl.config.bind`."""
    content = read_yaml(file)
    if content.get("kind") != "study":
        raise ValueError(f"{file}: a study must begin with `kind: study`")
    sections = {key: value for key, value in content.items() if key not in ("kind", "about")}
    about = content.get("about") or {}
    check_about(file, about, ABOUT)
    if not all(isinstance(text, str) for text in about.values()):
        raise ValueError(f"{file}: about = {about!r}; must be a mapping of texts")
    return RawConfig(file.stem, "study", about, sections, ((file, content),))


def _check_grid(study: Study) -> Iterator[str]:
    """What the annotations cannot say."""
    percentage = study.unit == "percentage"
    allowed = "up to 100" if percentage else "whole numbers from 1"
    for budget in study.budgets:
        if budget > 100 if percentage else budget != int(budget):
            yield f"study.budgets: found {budget} {study.unit}, allowed: {allowed}"
    if study.unit == "slices" and study.configuration.startswith("3d"):
        yield f"study.unit: slices with configuration {study.configuration!r}; allowed with 2d only"
    if not study.schedules:
        yield "schedules: none; at least one fine-tuning schedule is needed"


def _check_names(study: Study) -> Iterator[str]:
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


def _check_trainers(study: Study) -> Iterator[str]:
    known, waits = find_configs(), find_waiting(study)
    for section, name, arm in _list_arms(study):
        for knob in ("trainer", "scratch_trainer"):
            trainer = getattr(arm, knob, None)
            waited_for = section == "pretraining" and name in waits
            if trainer is not None and trainer not in known and not waited_for:
                yield (
                    f"{section}.{name}.{knob} = {trainer!r}: there is no such trainer"
                    f"{suggest(trainer, known)}; known: {', '.join(known)}. A method that does not "
                    "exist yet says waits: trainer"
                )


def _check_overrides(study: Study) -> Iterator[str]:
    for (section, name, arm), part in product(_list_arms(study), ("overrides", "finetuning")):
        for knob in getattr(arm, part, {}):
            full = "training.seed" if knob == "seed" else knob
            if any(full == each or full.startswith(f"{each}.") for each in SET_BY_THE_STUDY):
                path = f"{section}.{name}.{part}.{knob}"
                yield f"{path}: set by the study itself (seeds, unit and budgets); remove it"


def _check_stages(study: Study) -> Iterator[str]:
    """An arm and the one that it follows make one chain for every repetition and fold."""
    above: dict[str, PretrainingArm] = {}
    for method, arm in study.pretraining.items():
        yield from _check_beginning(f"pretraining.{method}", arm)
        if (first := above.get(arm.after or "")) is not None:
            path, like = f"pretraining.{method}", f"as {arm.after}"
            if list(arm.seeds) != list(first.seeds) and not first.is_file:
                yield f"{path}.seeds: found {[*arm.seeds]}, allowed: {[*first.seeds]}, {like}"
            if arm.fold is not None and arm.fold != first.fold and not first.is_file:
                yield f"{path}.fold: found {arm.fold!r}, allowed: {first.fold!r}, {like}"
            if INITIAL & set(arm.overrides):
                yield f"{path}.overrides: the weights are those of {arm.after}; remove them"
        elif arm.after is not None:
            known = ", ".join(above) or "none"
            yield (
                f"pretraining.{method}.after = {arm.after!r}: no such arm stands above"
                f"{suggest(arm.after, above)}; there are: {known}"
            )
        above[method] = arm


def _check_beginning(path: str, arm: PretrainingArm) -> Iterator[str]:
    """An arm pre-trains, or starts from a file."""
    knobs, unset = (plain(vars(each)) for each in (arm, PretrainingArm()))
    given = [knob for knob in OF_PRETRAINING if knobs[knob] != unset[knob]]
    if arm.is_file and arm.weights is None and arm.waits != "weights":
        yield (
            f"{path}: neither trainer nor weights; allowed: `trainer:` (it pre-trains), `weights:` "
            "(a file), or `waits: weights` (a file that whoever runs the study gives)"
        )
    elif not arm.is_file and (arm.weights is not None or arm.waits == "weights"):
        yield (
            f"{path}.trainer: found {arm.trainer!r} beside weights; allowed: one of them. To "
            "pre-train from a file give it an arm of its own, and name that in `after:`"
        )
    elif arm.is_file and given:
        yield f"{path}: {', '.join(given)} belong to a pre-training, this is a file; remove them"


def _list_arms(study: Study) -> Iterator[tuple[str, str, Any]]:
    for section in ARMS:
        for name, arm in getattr(study, section).items():
            yield section, name, arm
