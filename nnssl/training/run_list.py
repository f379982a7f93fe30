"""Every pre-training under `nnUNet_results`: what it is, how far it is, how to go on with it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import yaml

from nnssl.common.files import read_json
from nnssl.config import TRAINER_PREFIX
from nnssl.nnunet.checkpoint import own_part, read_checkpoint
from nnssl.nnunet.paths import (
    BEST,
    FINAL,
    LATEST,
    RESULTS,
    find_dataset_names,
    find_fold_folders,
    parse_fold_folder,
)
from nnssl.nnunet.weight_search import ENVIRONMENT, RunLocation
from nnssl.training.config_changes import CONFIG_FILE

UNFINISHED = (LATEST, BEST)  # as `--c` looks for them
PROBE_FILE, PROBED = "probe.json", "pretrained"
FINETUNER = "nnSSLFinetuneTrainer"
METRICS = ("train_loss", "val_loss", "weight_change", "effective_rank", "probe_dice")

State = Literal["finished", "unfinished", "not begun", "broken"]


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
    def place(self) -> RunLocation:
        return RunLocation(self.folder.parents[1], self.plans, self.configuration, self.fold)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def list_runs(results: Path, dataset: str | None = None) -> list[Run]:
    """All pre-training runs, by dataset, configuration, fold and trainer.

    Args:
        results: `nnUNet_results`.
        dataset: number or name of one dataset, or None for all.

    Raises:
        ValueError: there is no such folder or dataset.
    """
    if not results.is_dir():
        raise ValueError(f"{results} does not exist; {RESULTS} must name a folder")
    folders = [
        f
        for place in _datasets(results, dataset)
        for f in find_fold_folders(place, f"{TRAINER_PREFIX}*")
    ]
    found = [run for run in map(read_run, folders) if run is not None]
    found.sort(key=lambda run: (run.dataset, run.plans, run.configuration, run.fold, run.trainer))
    return with_commands(found)


def _datasets(results: Path, dataset: str | None) -> list[Path]:
    everything = sorted(folder for folder in results.glob("Dataset*") if folder.is_dir())
    if dataset is None:
        return everything
    if chosen := find_dataset_names(dataset, results):
        return [results / name for name in chosen]
    names = ", ".join(folder.name for folder in everything) or "none"
    raise ValueError(f"{results} holds no run of dataset {dataset}; it has {names}")


def read_run(folder: Path) -> Run | None:
    """The run of a fold's folder; None for one that is no pre-training."""
    trainer, plans, configuration, fold = parse_fold_folder(folder)
    file = next((folder / n for n in (FINAL, *UNFINISHED) if (folder / n).is_file()), None)
    config, problem = _config(folder / CONFIG_FILE)
    if config.get("kind", "pretrain") != "pretrain" or not (config or problem or file):
        return None
    run = Run(
        trainer,
        folder.parents[1].name,
        plans,
        configuration,
        fold,
        folder,
        "broken" if problem else "not begun",
        _date(file or folder / CONFIG_FILE),
        epochs=config.get("sections", {}).get("training", {}).get("num_epochs"),
        problem=problem,
    )
    return run if file is None else _with_checkpoint(run, file)


def _config(file: Path) -> tuple[dict[str, Any], str]:
    """Content of `resolved_config.yaml` and what is wrong with it; both empty without a file."""
    if not file.is_file():
        return {}, ""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict) or not isinstance(content["sections"]["training"], dict):
            raise ValueError("it is no configuration")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        return {}, f"{file.name} cannot be read: {str(error).splitlines()[0]}"
    return content, ""


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where compiled


def _with_checkpoint(run: Run, file: Path) -> Run | None:
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
            epochs=_planned(own) or run.epochs,
            metrics={**_metrics(own.get("history", {})), **_probe(run.folder / PROBE_FILE)},
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return replace(run, state="broken", problem=_named(file, error))


def _named(file: Path, error: Exception) -> str:
    """Readers name the file; what a file of another form leads to does not."""
    text = str(error)
    unnamed = isinstance(error, TypeError | AttributeError)
    return f"{file} holds something unexpected ({text})" if unnamed else text


def _planned(own: Mapping[str, Any]) -> int | None:
    training = own.get("config", {}).get("sections", {}).get("training", {})
    return training.get("num_epochs")


def _metrics(history: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Last losses and effective rank; the weight change is the mean over the encoder's stages."""
    last = {key: column[-1] for key, column in history.items() if column}
    known = {key: value for key, value in last.items() if value is not None}
    change = [value for key, value in known.items() if key.startswith("weight_change_stage_")]
    mean = {"weight_change": fmean(change)} if change else {}
    return {**{key: known[key] for key in METRICS if key in known}, **mean}


def _probe(file: Path) -> dict[str, float]:
    """Mean Dice of the frozen features, where the probe has run and read labels."""
    if not file.is_file():
        return {}
    content = read_json(file)
    encoders = content.get("encoders", {}) if isinstance(content, dict) else {}
    value = encoders.get(PROBED, {}).get("dice")
    return {} if value is None else {"probe_dice": float(value)}


def _date(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "minutes")


def with_commands(runs: Sequence[Run]) -> list[Run]:
    """Adds the line to go on with.

    Fine-tuning finds the only finished run of its dataset, plans, configuration and fold by itself;
    where there are several, or one that cannot be read, the line names the file.
    """
    final = Counter(run.place for run in runs if (run.folder / FINAL).is_file())
    return [replace(run, command=_command(run, final[run.place] == 1)) for run in runs]


def _command(run: Run, alone: bool) -> str:
    if run.state == "broken":
        return ""
    if run.state == "finished":
        name = "" if alone else f"export {ENVIRONMENT}={shlex.quote(str(run.folder / FINAL))}; "
        return name + run.place.command(FINETUNER)
    return run.place.command(run.trainer) + (" --c" if run.state == "unfinished" else "")
