"""Hostile and damaged checkpoints, made of a good one; each class has a function."""

from __future__ import annotations

import copy
import io
import pickle
import random
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

Content = dict[str, Any]
WRONG = (None, [1], {"a": [{}]}, "a text", -3)


class Run:
    """Leaves a mark when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def make_runners(mark: Path) -> Iterator[tuple[str, Run]]:
    """Objects that run something by other doors of pickle."""
    touch = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w').close()"
    yield "os.system", Run(__import__("os").system, touch)
    yield "subprocess.Popen", Run(subprocess.Popen, ["touch", str(mark)])
    yield "builtins.eval", Run(eval, f"__import__('os').system({touch!r})")
    yield "builtins.exec", Run(exec, code)
    yield "runpy", Run(__import__("runpy")._run_code, compile_later(code), {})
    yield "pickle.loads", Run(pickle.loads, pickle.dumps(Run(exec, code)))
    yield "getattr", Run(getattr, Run(__import__, "os"), "system")
    yield "torch.load", Run(torch.hub.load, "x", "y")


def compile_later(code: str) -> Run:
    return Run(compile, code, "x", "exec")


def place(content: Content, where: str, value: Any) -> Content:
    """A copy of the content with a value at a dotted place."""
    made = copy.deepcopy(content)
    inner: Any = made
    *path, last = where.split(".")
    for name in path:
        inner = inner[name]
    inner[last] = value
    return made


def find_places(content: Mapping[str, Any], levels: int = 3, before: str = "") -> Iterator[str]:
    """Dotted places of everything in mappings of so many levels; weights are one place."""
    for key, value in content.items():
        yield f"{before}{key}"
        whole = key in ("network_weights", "objective_state", "trained_inputs", "about", "versions")
        deeper = isinstance(value, Mapping) and levels > 1 and not whole
        if deeper and all(isinstance(name, str) and "." not in name for name in value):
            yield from find_places(value, levels - 1, f"{before}{key}.")


def save(content: Any, file: Path) -> Path:
    torch.save(content, file)
    return file


def flip_bits(file: Path, target: Path, count: int, seed: int = 0) -> Iterator[Path]:
    """One bit each, all over the file."""
    whole, draw = file.read_bytes(), random.Random(seed)
    for _ in range(count):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        target.write_bytes(damaged)
        yield target


def cut(file: Path, target: Path, count: int) -> Iterator[Path]:
    whole = file.read_bytes()
    for part in range(count):
        target.write_bytes(whole[: len(whole) * part // count])
        yield target


def rewrite(file: Path, target: Path, edit: Any = lambda name, data: data, **options: Any) -> Path:
    """The archive again, its parts edited, stored as `zipfile.ZipFile(**options)` does."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, edit(entry.filename, old.read(entry)))
    return target


def make_weights(content: Content) -> Iterator[tuple[str, Content]]:
    """Weights that no training gives."""
    weights = content["network_weights"]
    key = next(name for name, tensor in weights.items() if tensor.ndim > 2)
    tensor = weights[key]
    kinds = {
        "complex": tensor.to(torch.complex64),
        "bool": tensor > 0,
        "int64": tensor.long(),
        "int8": tensor.to(torch.int8),
        "float8": tensor.to(torch.float8_e4m3fn),
        "nan": tensor * float("nan"),
        "infinity": tensor + float("inf"),
        "1e38": torch.full_like(tensor, 1e38),
        "sparse": tensor.to_sparse(),
        "quantised": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "meta": tensor.to("meta"),
        "stride 0": torch.zeros(1).expand(10**10),
        "stride 0 of the shape": torch.zeros(1).expand(tensor.shape),
        "a number": 3.0,
        "a list": [1.0],
    }
    for name, value in kinds.items():
        yield name, {**content, "network_weights": {**weights, key: value}}


def make_plans(content: Content, mark: Path) -> Iterator[tuple[str, Content]]:
    """Plans that would run code, need endless memory, or lead elsewhere."""
    plans = "nnssl.plans"
    network = f"{plans}.configurations.2d.architecture"
    knobs = f"{network}.arch_kwargs"
    run = {"args": ["touch", str(mark)]}
    for part in ("nonlin", "norm_op", "dropout_op", "conv_op"):
        made = place(content, f"{knobs}.{part}", "subprocess.Popen")
        yield f"{part} runs", place(made, f"{knobs}.{part}_kwargs", run)
    yield "network runs", place(content, f"{network}.network_class_name", "subprocess.Popen")
    yield "a name looked up", place(content, f"{network}._kw_requires_import", ["nonlin", "a"])
    yield "stages", place(content, f"{knobs}.n_stages", 10**9)
    yield "features", place(content, f"{knobs}.features_per_stage", [10**9] * 3)
    yield "wide", place(content, f"{knobs}.features_per_stage", [8192] * 3)
    yield "convolutions", place(content, f"{knobs}.n_conv_per_stage", [10**9] * 3)
    yield "kernels", place(content, f"{knobs}.kernel_sizes", [[10**6, 10**6]] * 3)
    for key in ("plans_name", "dataset_name"):
        yield f"{key} elsewhere", place(content, f"{plans}.{key}", "../../elsewhere")
        yield f"{key} of two lines", place(content, f"{plans}.{key}", "a\nrm -rf b")
    yield "dataset elsewhere", place(content, "nnssl.dataset", "../../../elsewhere")
    yield "dataset of two lines", place(content, "nnssl.dataset", "a\ntouch b")
    yield (
        "folder elsewhere",
        place(content, f"{plans}.configurations.2d.data_identifier", "../../elsewhere"),
    )


def nest(levels: int, width: int = 10) -> list[Any]:
    """Shared lists in one another: few bytes, `width ** levels` values."""
    inner: list[Any] = [0]
    for _ in range(levels):
        inner = [inner] * width
    return inner


def pickle_plainly(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()
