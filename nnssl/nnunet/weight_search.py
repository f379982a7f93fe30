"""Which file fine-tuning starts from: named, or the one finished pre-training run that fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval

from nnssl.common.checks import Count, checked
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import FINAL, LATEST, find_fold_folders

ENVIRONMENT = "nnssl_pretrained_weights"
SEARCH, NONE = "search", "none"


@checked
@dataclass(frozen=True)
class WeightSource:
    """Section `weights`: where the weights come from and what of them is used.

    Attributes:
        source: `search` (the finished pre-training run of the same dataset, plans, configuration
            and fold), `none` (random weights), or the path of a checkpoint of nnSSL or nnU-Net.
            The environment variable `nnssl_pretrained_weights` names a file too.
        trainer: lets the search find the runs of this pre-training trainer only.
        part: `trained`: everything that was trained, the decoder too; or `encoder`.
        stages: only the first of the encoder's stages, and no decoder; null: all.
        min_share: the run stops when less than this share of the wanted parameters loads.
        allow_contamination: weights of another dataset that have seen what this fold evaluates are
            taken all the same, and the checkpoint says so.
    """

    source: str = SEARCH
    trainer: str | None = None
    part: Literal["encoder", "trained"] = "trained"
    stages: Count | None = None
    min_share: Annotated[float, Interval(gt=0, le=1)] = 0.5
    allow_contamination: bool = False


@dataclass(frozen=True)
class RunLocation:
    """Where the finished run is looked for.

    Attributes:
        results: `nnUNet_results/<dataset>`.
        plans: name of the plans.
        configuration: the configuration of the pre-training run.
        fold: its fold; a run on `all` is found for fold `all` only.
    """

    results: Path
    plans: str
    configuration: str
    fold: int | str

    def runs(self, trainer: str | None) -> list[Path]:
        """Folders of the fold of every nnSSL run here, or of one trainer's."""
        name = trainer or "nnSSL*"
        return find_fold_folders(self.results, name, self.plans, self.configuration, self.fold)

    def command(self, trainer: str) -> str:
        """The pre-training command."""
        return (
            f"nnUNetv2_train {self.results.name} {self.configuration} {self.fold} "
            f"-p {self.plans} -tr {trainer}"
        )


def named_file(knobs: WeightSource, environment: str | None) -> Path | None:
    """The file that the environment or the YAML names; None where neither does.

    Raises:
        ValueError: they contradict each other.
        FileNotFoundError: there is no such file.
    """
    in_yaml = None if knobs.source in (SEARCH, NONE) else Path(knobs.source).expanduser()
    in_environment = Path(environment).expanduser() if environment else None
    if in_environment and knobs.source == NONE:
        raise ValueError(
            "weights.source is 'none' (random weights), but the environment variable "
            f"{ENVIRONMENT} names {in_environment}. Unset the variable, or train with a trainer "
            "that takes weights."
        )
    if in_yaml and in_environment and in_yaml.resolve() != in_environment.resolve():
        raise ValueError(
            f"weights.source names {in_yaml}, the environment variable {ENVIRONMENT} names "
            f"{in_environment}. Remove one of them."
        )
    file = in_environment or in_yaml
    if file is not None and not file.is_file():
        raise FileNotFoundError(
            f"the weights {file} do not exist; they are named by "
            f"{f'the environment variable {ENVIRONMENT}' if in_environment else 'weights.source'}"
        )
    return file


def find_finished_run(place: RunLocation, trainer: str | None) -> Path:
    """The final checkpoint of the one finished pre-training run.

    Raises:
        FileNotFoundError: there is none; the message has the command that makes one.
        ValueError: there are several; the message has the lines that choose one.
    """
    files = [folder / FINAL for folder in place.runs(trainer)]
    found = [file for file in files if file.is_file() and _is_pretraining(file)]
    if not found:
        raise FileNotFoundError(_none_found(place, trainer))
    if len(found) > 1:
        raise ValueError(_several_found(found))
    return found[0]


def _is_pretraining(file: Path) -> bool:
    """A fine-tuned run lies in a folder of the same pattern."""
    return read_checkpoint(file).get("nnssl", {}).get("kind") == "pretrain"


def _none_found(place: RunLocation, trainer: str | None) -> str:
    where = place.results / f"{trainer or 'nnSSL*'}__{place.plans}__{place.configuration}"
    unfinished = [f for f in place.runs(trainer) if (f / LATEST).is_file()]
    lines = [f"No finished pre-training run was found as {where}/fold_{place.fold}/{FINAL}."]
    for folder in unfinished:
        name = folder.parent.name.split("__")[0]
        lines.append(f"{folder} is not finished; finish it with: {place.command(name)} --c")
    if not unfinished:
        lines.append(f"Pre-train first: {place.command(trainer or 'nnSSLContrastiveTrainer')}")
    lines.append(
        f"Or name a file: export {ENVIRONMENT}=/path/to/{FINAL}, or `source:` in the section "
        "`weights`. From random weights: -tr nnSSLScratchTrainer."
    )
    return "\n".join(lines)


def _several_found(files: list[Path]) -> str:
    lines = [f"{len(files)} finished pre-training runs fit; nnSSL does not guess. Choose one of:"]
    for file in files:
        trainer = file.parent.parent.name.split("__")[0]
        lines.append(f"  export {ENVIRONMENT}={file}")
        lines.append(f"    or, in the YAML: weights: {{trainer: {trainer}}}")
    return "\n".join(lines)
