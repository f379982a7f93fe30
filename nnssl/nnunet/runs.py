"""Pre-training runs under `nnUNet_results`: all of them, and the one that fine-tuning takes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from annotated_types import Interval
from typing_extensions import TypedDict

from nnssl.common.checks import Count, checked
from nnssl.common.content import check_content
from nnssl.common.environment import read_variable
from nnssl.common.files import hash_file, read_json
from nnssl.config import TRAINER_PREFIX
from nnssl.config.files import read_yaml
from nnssl.nnunet.checkpoint import StoredConfiguration, own_part, read_checkpoint, require_file
from nnssl.nnunet.paths import (
    CHECKPOINTS,
    CONFIG_FILE,
    FINAL,
    LATEST,
    PROBE_FILE,
    RESULTS,
    WEIGHTS,
    find_dataset_names,
    find_fold_folders,
    fold_folder,
    parse_fold_folder,
)
from nnssl.nnunet.weight_files import find_weight_file

SEARCH, NONE = "search", "none"
ANY_TRAINER = f"{TRAINER_PREFIX}*"
FINETUNER = "nnSSLFinetuneTrainer"
State = Literal["finished", "unfinished", "not begun", "broken"]
OTHERWISE = (
    f"Or name a file: export {WEIGHTS}=/path/to/{FINAL}, or `source:` in the section `weights`. "
    "From random weights: -tr nnSSLScratchTrainer."
)
METRICS = ("train_loss", "val_loss", "weight_change", "effective_rank", "probe_dice")


@checked
@dataclass(frozen=True)
class WeightSource:
    """Section `weights`: where the weights come from and what of them is used.

    Attributes:
        source: `search` (the finished pre-training run of the same dataset, plans, configuration
            and fold), `none` (random weights), the path of a file or a folder with weights of any
            known maker, or `hf://owner/name` of a model hub. The environment variable
            `nnssl_pretrained_weights` names one too.
        key_map: a YAML file that says how the names of a file's tensors become a U-Net's.
        trust_pickle: a file that cannot be read otherwise may run code as you.
        trainer: lets the search find the runs of this pre-training trainer only.
        part: `trained`: everything that was trained, the decoder too; or `encoder`.
        stages: only the first of the encoder's stages, and no decoder; null: all.
        cut_width: a network of fewer features takes the source's first ones, which changes what
            they compute; else it takes none.
        min_share: the run stops when less than this share of the wanted parameters loads.
        allow_contamination: weights that have seen what this fold evaluates are taken all the
            same, and the checkpoint says so.
    """

    source: str = SEARCH
    key_map: str | None = None
    trust_pickle: bool = False
    trainer: str | None = None
    part: Literal["encoder", "trained"] = "trained"
    stages: Count | None = None
    cut_width: bool = False
    min_share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    allow_contamination: bool = False


@dataclass(frozen=True)
class RunLocation:
    """Where runs lie that differ by their trainer only.

    Attributes:
        results: `nnUNet_results/<dataset>`.
        configuration: that of the pre-training run.
        fold: its fold; a run on `all` is found for fold `all` only.
    """

    results: Path
    plans: str
    configuration: str
    fold: int | str

    def find_folders(self, trainer: str) -> list[Path]:
        """Folders of the fold of one trainer; a star stands for any text."""
        return find_fold_folders(self.results, trainer, self.plans, self.configuration, self.fold)

    def make_command(self, trainer: str) -> str:
        """The command that trains here."""
        return (
            f"nnUNetv2_train {self.results.name} {self.configuration} {self.fold} "
            f"-p {self.plans} -tr {trainer}"
        )


@dataclass(frozen=True)
class Run:
    """One pre-training of one fold.

    Attributes:
        trainer, dataset, plans, configuration, fold: from the names of its folders.
        folder: of the fold.
        state: `finished`, `unfinished` (it can be continued), `not begun` (it stopped before its
            first checkpoint) or `broken` (a file cannot be read).
        date: of its last checkpoint, else of its configuration.
        epoch, epochs: done, and planned; None where unknown.
        metrics: last values, see `METRICS`; what was not measured is missing.
        problem: what is broken.
        command: the line that uses it, continues it or starts it anew.
    """

    trainer: str
    dataset: str
    plans: str
    configuration: str
    fold: str
    folder: Path
    state: State
    date: str
    epoch: int | None = None
    epochs: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    command: str = ""

    @property
    def location(self) -> RunLocation:
        return RunLocation(self.folder.parents[1], self.plans, self.configuration, self.fold)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def list_runs(results: Path, dataset: str | None = None) -> list[Run]:
    """All pre-training runs (of one dataset), by dataset, configuration, fold and trainer.

    Raises:
        ValueError: there is no such folder or dataset.
    """
    if not results.is_dir():
        raise ValueError(f"{results} does not exist; {RESULTS} must name a folder")
    datasets = _find_datasets(results, dataset)
    folders = [folder for each in datasets for folder in find_fold_folders(each, ANY_TRAINER)]
    found = [run for run in map(_read_run, folders) if run is not None]
    found.sort(key=lambda run: (run.dataset, run.plans, run.configuration, run.fold, run.trainer))
    final: dict[RunLocation, list[Path]] = {}
    for run in found:
        if (run.folder / FINAL).is_file():
            final.setdefault(run.location, []).append(run.folder / FINAL)
    taken = {place: _find_taken(files) for place, files in final.items()}
    return [replace(r, command=_make_line(r, taken.get(r.location) == r.folder)) for r in found]


def _find_taken(files: Sequence[Path]) -> Path | None:
    """Folder of the run that fine-tuning finds by itself among those of one place."""
    with suppress(OSError, ValueError):
        last = find_last_stages(files)
        return last[0].parent if len(last) == 1 else None
    return None


def _find_datasets(results: Path, dataset: str | None) -> list[Path]:
    everything = sorted(folder for folder in results.glob("Dataset*") if folder.is_dir())
    if dataset is None:
        return everything
    if chosen := find_dataset_names(dataset, results):
        return [results / name for name in chosen]
    names = ", ".join(folder.name for folder in everything) or "none"
    raise ValueError(f"{results} holds no run of dataset {dataset}; it has {names}")


def _read_run(folder: Path) -> Run | None:
    """The run of a fold's folder; None for one that is no pre-training."""
    trainer, plans, configuration, fold = parse_fold_folder(folder)
    file = next((folder / n for n in CHECKPOINTS if (folder / n).is_file()), None)
    config, problem = _read_config(folder / CONFIG_FILE)
    if config.get("kind", "pretrain") != "pretrain" or not (config or problem or file):
        return None
    written = (file or folder / CONFIG_FILE).stat().st_mtime
    run = Run(
        trainer,
        folder.parents[1].name,
        plans,
        configuration,
        fold,
        folder,
        "broken" if problem else "not begun",
        datetime.fromtimestamp(written).isoformat(" ", "minutes"),
        epochs=_find_epochs(config),
        problem=problem,
    )
    return run if file is None else _add_checkpoint(run, file)


def _read_config(file: Path) -> tuple[dict[str, Any], str]:
    """Content of `resolved_config.yaml` and what is wrong with it; both empty without a file."""
    if not file.is_file():
        return {}, ""
    try:
        return check_content(read_yaml(file), StoredConfiguration, str(file)), ""
    except ValueError as error:
        return {}, str(error).splitlines()[0]


def _add_checkpoint(run: Run, file: Path) -> Run | None:
    """What the checkpoint tells; its tensors stay unread."""
    try:
        checkpoint = read_checkpoint(file, mmap=True)
        if checkpoint.get("nnssl", {}).get("kind", "pretrain") != "pretrain":
            return None
        own = own_part(checkpoint, "pretrain")
        return replace(
            run,
            state="broken" if run.problem else "finished" if file.name == FINAL else "unfinished",
            epoch=own.get("epoch"),
            epochs=_find_epochs(own.get("config", {})) or run.epochs,
            metrics={
                **_find_metrics(own.get("history", {})),
                **read_probe(run.folder / PROBE_FILE),
            },
        )
    except (OSError, ValueError) as error:
        return replace(run, state="broken", problem=str(error))


def _find_epochs(config: Mapping[str, Any]) -> int | None:
    return config.get("sections", {}).get("training", {}).get("num_epochs")


def _find_metrics(history: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Last losses and effective rank; the weight change is the mean over the encoder's stages."""
    last = {key: column[-1] for key, column in history.items() if column}
    known = {key: value for key, value in last.items() if value is not None}
    change = [value for key, value in known.items() if key.startswith("weight_change_stage_")]
    mean = {"weight_change": fmean(change)} if change else {}
    return {**{key: known[key] for key in METRICS if key in known}, **mean}


class _Features(TypedDict, total=False):
    dice: float | None


class _Probe(TypedDict, total=False):
    encoders: dict[str, _Features]


def read_probe(file: Path) -> dict[str, float]:
    """Mean Dice of the frozen features, where the probe has run and read labels."""
    if not file.is_file():
        return {}
    value = read_json(file, _Probe).get("encoders", {}).get("pretrained", {}).get("dice")
    return {} if value is None else {"probe_dice": float(value)}


def _make_line(run: Run, alone: bool) -> str:
    """The line to go on with.

    Fine-tuning finds the only finished run of its dataset, plans, configuration and fold by itself;
    where there are several, or one that cannot be read, the line names the file.
    """
    if run.state == "broken":
        return ""
    if run.state == "finished":
        name = "" if alone else f"export {WEIGHTS}={shlex.quote(str(run.folder / FINAL))}; "
        return name + run.location.make_command(FINETUNER)
    return run.location.make_command(run.trainer) + (" --c" if run.state == "unfinished" else "")


def find_named_file(knobs: WeightSource) -> Path | None:
    """The file that the environment or the YAML names; None where neither does.

    Raises:
        ValueError: they contradict each other.
        FileNotFoundError: there is no such file.
    """
    environment = read_variable(WEIGHTS)
    in_yaml = None if knobs.source in (SEARCH, NONE) else find_weight_file(knobs.source)
    in_environment = find_weight_file(environment) if environment else None
    if in_environment and knobs.source == NONE:
        raise ValueError(
            "weights.source is 'none' (random weights), but the environment variable "
            f"{WEIGHTS} names {in_environment}. Unset the variable, or train with a trainer "
            "that takes weights."
        )
    if in_yaml and in_environment and in_yaml.resolve() != in_environment.resolve():
        raise ValueError(
            f"weights.source names {in_yaml}, the environment variable {WEIGHTS} names "
            f"{in_environment}. Remove one of them."
        )
    file = in_environment or in_yaml
    if file is not None:
        by = f"the environment variable {WEIGHTS}" if in_environment else "weights.source"
        require_file(file, f"the weights that {by} names")
    return file


def find_finished_run(place: RunLocation, trainer: str | None, otherwise: str = OTHERWISE) -> Path:
    """The final checkpoint of the one finished pre-training run, of any or of one trainer.

    Of runs that started one from another, the last is taken.

    Raises:
        FileNotFoundError: there is none; the message has the command that makes one, and ends with
            `otherwise`.
        ValueError: there are several; the message has the lines that choose one.
    """
    files = [folder / FINAL for folder in place.find_folders(trainer or ANY_TRAINER)]
    found = find_last_stages([f for f in files if f.is_file() and _is_pretraining(f)])
    if not found:
        raise FileNotFoundError(_say_none(place, trainer, otherwise))
    if len(found) > 1:
        raise ValueError(_say_several(found))
    return found[0]


def _is_pretraining(file: Path) -> bool:
    """A fine-tuned run lies in a folder of the same pattern."""
    return read_checkpoint(file, mmap=True).get("nnssl", {}).get("kind") == "pretrain"


def find_last_stages(files: Sequence[Path]) -> list[Path]:
    """Of final checkpoints those from whose weights no other of them started."""
    if len(files) < 2:
        return list(files)
    own = [read_checkpoint(file, mmap=True).get("nnssl", {}) for file in files]
    begun = {each.get("identity", {}).get("weights", {}).get("sha256") for each in own}
    return [file for file in files if hash_file(file) not in begun]


def _say_none(place: RunLocation, trainer: str | None, otherwise: str) -> str:
    name = trainer or ANY_TRAINER
    where = fold_folder(place.results, name, place.plans, place.configuration, place.fold)
    unfinished = [f for f in place.find_folders(name) if (f / LATEST).is_file()]
    lines = [f"No finished pre-training run was found as {where / FINAL}."]
    for folder in unfinished:
        name, *_ = parse_fold_folder(folder)
        lines.append(f"{folder} is not finished; finish it with: {place.make_command(name)} --c")
    if not unfinished:
        lines.append(f"Pre-train first: {place.make_command(trainer or 'nnSSLContrastiveTrainer')}")
    return "\n".join([*lines, otherwise])


def _say_several(files: list[Path]) -> str:
    lines = [f"{len(files)} finished pre-training runs fit; nnSSL does not guess. Choose one of:"]
    for file in files:
        trainer, *_ = parse_fold_folder(file.parent)
        lines.append(f"  export {WEIGHTS}={shlex.quote(str(file))}")
        lines.append(f"    or, in the YAML: weights: {{trainer: {trainer}}}")
    return "\n".join(lines)
