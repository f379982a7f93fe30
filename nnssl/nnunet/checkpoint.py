"""Checkpoints: plain content, written as a whole or not at all, read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nnssl.common.files import atomic_path, remove_old_parts
from nnssl.nnunet.paths import WEIGHTS

_NUMPY_TYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
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


def read_checkpoint(filename: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint of nnSSL or nnU-Net onto the CPU, without running any code that it holds.

    `mmap` leaves tensors in the file until they are used; for looking at the rest.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, is cut off, or holds more than plain values.
    """
    path = Path(filename)
    require_file(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged and hostile files fail in many ways; all get one sentence
        raise ValueError(_unreadable(path, f"{type(error).__name__}: {error}")) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise ValueError(_unreadable(path, "it holds no 'network_weights'"))
    return checkpoint


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


def _unreadable(path: Path, cause: str) -> str:
    first_line = cause.strip().splitlines()[0]
    return (
        f"{path} cannot be read as a checkpoint ({first_line}). It is another kind of file, was "
        "cut off while it was written or copied, or holds objects that nnSSL refuses to load, "
        "because loading them could run code. Copy it again, or name a checkpoint that nnU-Net or "
        "nnSSL wrote."
    )


def _numpy_scalars() -> list[Any]:
    """What stock checkpoints need beyond tensors: NumPy's scalar and dtype constructors.

    The scalar constructor has one name in files of NumPy 1 and another in files of NumPy 2.
    """
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = {type(np.dtype(name)) for name in _NUMPY_TYPES.split()}
    return [*((scalar, name) for name in names), np.dtype, *dtypes]
