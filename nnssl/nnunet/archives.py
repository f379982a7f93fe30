"""Files of tensors that anybody may have made: whole, plain, and no larger than they look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch

from nnssl.common.content import check_size, open_container

BLOCK = 2**20
# how files of torch.save begin that are older than torch 1.6; they hold no checksums
OLD_BEGINNING = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NUMPY_TYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
_REFUSED = re.compile(r"GLOBAL (?:function |class )?([\w.]+\w)")  # what torch refuses, in its words


def load_plain(path: Path, mmap: bool = False) -> Any:
    """What a file of torch.save holds, on the CPU; no code that it names is run.

    Args:
        path: the file.
        mmap: leave tensors in the file until they are used (not of old files); their checksums are
            not looked at.

    Raises:
        ValueError: it is no such file, is damaged, or holds more than plain values, or more of them
            than its size allows; says why.
    """
    try:
        # one opened file, which stays the same when another run replaces it
        with path.open("rb") as stream, torch.serialization.safe_globals(_numpy_scalars()):
            room, mmap = _check_beginning(stream, mmap)
            source = path if mmap else stream
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # damaged and hostile files fail in many ways
        raise ValueError(_explain(error)) from error
    check_size(content, "it")
    _check_tensors(content, None if mmap else room)
    return content


def load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a file of safetensors, and the texts that it says of itself.

    Raises:
        ValueError: it is no such file, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"it is damaged or no file of safetensors: {error}") from error


def unpickle(path: Path) -> Any:
    """What a file of torch.save holds, whatever it is: code that it names is run.

    For files of people who are trusted with that, by their name.
    """
    return torch.load(path, map_location="cpu", weights_only=False)


def check_weights(weights: dict[str, Any]) -> None:
    """Refuse a state dict whose entries are no weights (``ValueError``).

    Normalisation over the batch counts its batches in an integer.
    """
    for key, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"its weight {key} is a {type(tensor).__name__}, allowed is a tensor")
        counts = key.endswith("num_batches_tracked") and tensor.dtype == torch.int64
        if tensor.dtype not in WEIGHT_TYPES and not counts:
            raise ValueError(
                f"its weight {key} is of type {tensor.dtype}, allowed are float16, bfloat16, "
                "float32 and float64"
            )


def _check_beginning(stream: BinaryIO, mmap: bool) -> tuple[int, bool]:
    """Bytes that the file's tensors can have, and whether they can stay in the file."""
    beginning = stream.read(len(OLD_BEGINNING))
    if beginning != OLD_BEGINNING:
        return _check_archive(stream, whole=not mmap), mmap
    size = stream.seek(0, SEEK_END)
    stream.seek(0)
    return size, False


def _check_archive(stream: BinaryIO, whole: bool) -> int:
    """Checks the checksums of a file of torch.save, which is a zip archive without compression.

    Args:
        stream: the file, which is at its beginning again afterwards.
        whole: of the tensors too.

    Returns:
        Bytes of all tensors.
    """
    size = stream.seek(0, SEEK_END)
    with ZipFile(stream) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        stored = sum(entry.file_size for entry in entries)
        packed = any(entry.compress_type != ZIP_STORED for entry in entries)
        if packed or len(names) < len(entries) or stored > size:
            raise ValueError("its parts are compressed or overlap, as torch.save never writes them")
        for entry in entries:
            if whole or "/data/" not in entry.filename:
                with archive.open(entry) as part:
                    while part.read(BLOCK):
                        pass  # reading to the end compares the checksum
    stream.seek(0)
    return sum(entry.file_size for entry in entries if "/data/" in entry.filename)


def _check_tensors(content: Any, room: int | None) -> None:
    """Refuse tensors that are larger than their bytes in the file, or of another make."""
    storages: dict[int, int] = {}
    for tensor in _find_tensors(content, set()):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise ValueError(
                "it holds a sparse, quantised or nested tensor, allowed are dense ones"
            )
        if tensor.device.type != "cpu":
            raise ValueError(f"it holds a tensor without values (device {tensor.device})")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(
                f"it holds a tensor of shape {list(tensor.shape)} on {storage.nbytes()} bytes"
            )
        storages[storage.data_ptr()] = storage.nbytes()
    if room is not None and sum(storages.values()) > room:
        raise ValueError(f"its tensors need {sum(storages.values())} bytes, it holds {room}")


def _find_tensors(value: Any, known: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif (parts := open_container(value)) is not None and id(value) not in known:
        known.add(id(value))
        for part in parts:
            yield from _find_tensors(part, known)


def _explain(error: Exception) -> str:
    """The cause in our words: torch advises to switch its protection off."""
    text = str(error)
    if found := _REFUSED.search(text):
        return f"it holds {found[1]}, which is no plain value and could run code"
    if isinstance(error, BadZipFile):
        return f"it is damaged or no file of torch.save: {text}"
    lines = [line for line in text.strip().splitlines() if line and "weights_only" not in line]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _numpy_scalars() -> list[Any]:
    """What stock checkpoints need beyond tensors: NumPy's scalar and dtype constructors.

    The scalar constructor has one name in files of NumPy 1 and another in files of NumPy 2.
    """
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = {type(np.dtype(name)) for name in _NUMPY_TYPES.split()}
    return [*((scalar, name) for name in names), np.dtype, *dtypes]
