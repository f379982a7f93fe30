"""Checkpoints: plain content, written as a whole or not at all, read without running code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import Required, TypedDict

from nnssl.common.checks import Name, Whole
from nnssl.common.content import check_content
from nnssl.common.files import atomic_path, remove_old_parts
from nnssl.nnunet.archives import check_weights, load_plain
from nnssl.nnunet.paths import WEIGHTS
from nnssl.nnunet.plans import Plans

# kind of a run -> its name, and what names the weights that it starts from
RUNS = {
    "pretrain": ("pre-training", "training.initial_weights"),
    "finetune": ("fine-tuning", f"the environment variable {WEIGHTS}"),
}


def make_plain(value: Any) -> Any:
    """Returns `value` made of tensors on the CPU, numbers, strings, None, lists and dicts only.

    NumPy scalars become Python numbers, NumPy arrays tensors, tuples and sets lists, paths and
    devices strings. Tensors that share storage still do (aliased weights are stored once).

    Raises:
        ValueError: an object of another type, with the place where it was found.
    """
    return _plain(value, "checkpoint", {})


def _plain(value: Any, place: str, copies: dict[tuple[Any, ...], torch.Tensor]) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return _on_cpu(value, copies)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(np.array(value))
    if isinstance(value, Mapping):
        items = ((_plain_key(k, place), v) for k, v in value.items())
        return {k: _plain(v, f"{place}[{k!r}]", copies) for k, v in items}
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        ordered = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [_plain(v, f"{place}[{i}]", copies) for i, v in enumerate(ordered)]
    return _plain_leaf(value, place)


def _plain_leaf(value: Any, place: str) -> Any:
    for kind in (bool, int, float, str):  # subclasses of Python's own types
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (os.PathLike, torch.device, torch.dtype)):
        return str(value)
    raise ValueError(
        f"{place} is a {type(value).__name__}; a checkpoint may hold tensors, NumPy values, "
        "numbers, strings, None, lists and dicts only. Convert it before saving."
    )


def _plain_key(key: Any, place: str) -> Any:
    if isinstance(key, np.generic):
        return key.item()
    if isinstance(key, (str, int, float)) or key is None:
        return key
    raise ValueError(f"{place} has the key {key!r}; a checkpoint's keys are strings or numbers.")


def _on_cpu(tensor: torch.Tensor, copies: dict[tuple[Any, ...], torch.Tensor]) -> torch.Tensor:
    tensor = tensor.detach()
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if place not in copies:
        copies[place] = tensor.cpu()
    return copies[place]


def save_atomically(checkpoint: dict[str, Any], filename: str | Path) -> None:
    """Writes `make_plain(checkpoint)` whole or not at all; several processes may write one file.

    Parts of the file that killed runs have left for more than an hour are removed first.

    Raises:
        OSError: it could not be written (disk full, no permission). The former file is untouched.
    """
    target = Path(filename)
    content = make_plain(checkpoint)
    try:
        remove_old_parts(target)
        with atomic_path(target) as part, part.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch hides the system's cause in a RuntimeError
        hint = "" if isinstance(error, OSError) else " Is the disk full?"
        raise OSError(
            f"{target} could not be written: {error}. What stood there before is untouched.{hint}"
        ) from error


class StoredConfiguration(TypedDict, total=False):
    """The resolved configuration of a run, see `Config.to_dict`."""

    name: Required[str]
    kind: Required[str]
    about: Required[dict[str, Any]]
    sections: Required[dict[str, dict[str, Any]]]
    sources: Required[list[str]]
    overrides: dict[str, Any]


class _Images(TypedDict, total=False):
    images: dict[str, dict[str, list[str]]]
    left_out: dict[str, Any]


class _Cases(TypedDict, total=False):
    train: list[str] | None
    left_out: list[str]
    unlabelled: _Images
    records: dict[str, list[Any]]


class _Weights(TypedDict, total=False):
    loaded: Required[list[str]]


class _Own(TypedDict, total=False):
    """Everything of nnSSL's; former versions wrote less."""

    kind: str
    dataset: Name
    configuration: str
    fold: Any
    plans: Plans
    config: StoredConfiguration
    versions: dict[str, str]
    objective: str
    objective_state: dict[str, Any]
    budget: dict[str, Any]
    trained: dict[str, Any]
    trained_keys: list[str]
    trained_inputs: dict[str, int]
    input_channels: int
    step: Whole
    epoch: Whole
    epoch_terms: list[dict[str, float]]
    skipped_steps: Whole
    history: dict[str, list[float | None]]
    cases: _Cases
    ancestors: list[dict[str, Any]]
    epoch_losses: list[float]
    identity: dict[str, dict[str, Any]]
    weights: _Weights
    start_weights: dict[str, Any]
    labels: dict[str, Any] | None


class _ForeignPlan(TypedDict, total=False):
    dataset_name: str
    configurations: dict[str, dict[str, Any]]


class _AdaptationPlan(TypedDict, total=False):
    """What is read of the plan in checkpoints of DKFZ's nnssl."""

    pretrain_plan: _ForeignPlan
    key_to_encoder: str | None
    key_to_stem: str | None


class _Arguments(TypedDict, total=False):
    plans: Plans
    configuration: str
    configuration_name: str
    dataset_json: dict[str, Any]


class _Checkpoint(TypedDict, total=False):
    """What is read of a checkpoint of nnSSL or nnU-Net."""

    network_weights: Required[dict[str, Any]]
    nnssl: _Own
    nnssl_adaptation_plan: _AdaptationPlan
    init_args: _Arguments
    optimizer_state: dict[str, Any] | None
    logging: dict[str, Any]
    current_epoch: Whole
    trainer_name: str


def read_checkpoint(filename: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint of nnSSL or nnU-Net onto the CPU, without running any code that it holds.

    `mmap` leaves tensors in the file until they are used; for looking at the rest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, is damaged or cut off, or holds more than plain
            values, or others than expected.
    """
    path = Path(filename)
    require_file(path)
    with refusing_damage(path):
        checkpoint = load_plain(path, mmap)
        if not isinstance(checkpoint, dict) or "network_weights" not in checkpoint:
            raise ValueError("it holds no 'network_weights'")
        return check_checkpoint(checkpoint)


def check_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint, if its entries are of the types that are read (ValueError)."""
    check_content(checkpoint, _Checkpoint, "it is not as nnSSL or nnU-Net writes it")
    check_weights(checkpoint["network_weights"])
    check_weights(checkpoint.get("nnssl", {}).get("start_weights", {}))
    return checkpoint


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """A ValueError about the content of a checkpoint names the file, and what to do."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: {error}. Copy it again if it was cut off or "
            "damaged on its way, or name a checkpoint that nnU-Net or nnSSL wrote."
        ) from error


def require_file(path: Path, what: str = "the checkpoint") -> None:
    """Refuse (FileNotFoundError) a checkpoint that is not there, or a folder in place of one."""
    if path.is_dir():
        found = sorted([*path.glob("checkpoint_*.pth"), *path.glob("*/checkpoint_*.pth")])
        names = ", ".join(map(str, found[:5])) or "no checkpoint"
        raise FileNotFoundError(f"{what}: {path} is a folder, it holds {names}; name a file")
    if not path.is_file():
        raise FileNotFoundError(
            f"{what}: {path} does not exist; give the path of a checkpoint (*.pth)."
        )


@contextmanager
def speaking_of(file: str | Path) -> Iterator[None]:
    """What goes wrong with the content of a checkpoint is a ValueError that names the file.

    torch and nnU-Net fail in many ways when they take up what does not fit.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, ValueError) and str(file) in str(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{file}: {kind}{error}") from error


def own_part(
    checkpoint: Mapping[str, Any], kind: Literal["pretrain", "finetune"]
) -> dict[str, Any]:
    """The part under `nnssl` of a checkpoint, for a run of this kind to go on from.

    Raises:
        ValueError: the file is a stock one, or of the other kind.
    """
    own = checkpoint.get("nnssl")
    if not isinstance(own, dict) or own.get("kind") != kind:
        name, named_in = RUNS[kind]
        raise ValueError(
            f"the checkpoint is not one of an nnSSL {name} run, so the run cannot be "
            "continued or validated with it. To start from its weights, train anew without --c "
            f"(another nnUNet_results keeps the old files) and name it in {named_in}."
        )
    return own


def find_plans(checkpoint: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Plans and configuration that a checkpoint of nnSSL or nnU-Net v2 says it was trained by."""
    told = {**(checkpoint.get("init_args") or {}), **(checkpoint.get("nnssl") or {})}
    plans, name = told.get("plans"), told.get("configuration")
    if not isinstance(plans, Mapping) or name not in plans.get("configurations", {}):
        return None
    return plans, str(name)
