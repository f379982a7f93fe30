"""Losses of a run, step by step, beside those that were recorded of the same run.

A record is exact: losses as `float.hex()`, weights as a hash. It also says in what arithmetic it
was made. Where that is the arithmetic of the running process, every bit must be the same; elsewhere
the first steps must agree within what another order of summation explains (see `RELATIVE`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

RECORD = "NNSSL_RECORD"  # environment variable: write what is found instead of comparing
COMPUTING = (
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "nnunetv2",
    "batchgenerators",
    "batchgeneratorsv2",
    "dynamic-network-architectures",
)
VECTORS = ("sse", "avx", "amx", "fma", "f16c")  # names of instructions begin so
# Elsewhere sums run in another order and exponentials round otherwise: about 1e-7 (float32) in one
# forward pass. The optimiser multiplies that from step to step; most where a norm is taken over two
# samples (PCRLv2). Measured with narrower vectors (AVX2, SSE) on one machine: up to 6e-7 at step 0,
# 4e-5 at step 2, 4e-4 at step 9. A voxel that falls to another cluster changes the loss by 1e-4.
# A changed formula, draw or default shows in the second or third digit.
FIRST_STEPS = 3
RELATIVE = 2e-4


@dataclass
class Losses:
    """What a run gave.

    Attributes:
        train: loss of each optimiser step.
        validation: loss of each validation step.
        weights: hash of the final network weights.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    weights: str = ""


def watch(trainer: Any) -> Losses:
    """Notes the loss of every step that the trainer's own loop takes from now on."""
    losses = Losses()
    trainer.train_step = _noting(trainer.train_step, losses.train)
    trainer.validation_step = _noting(trainer.validation_step, losses.validation)
    return losses


def _noting(step: Callable[[Any], Any], noted: list[float]) -> Callable[[Any], Any]:
    def noting(batch: Any) -> Any:
        terms = step(batch)
        noted.append(float(terms["loss"]))
        return terms

    return noting


def run(trainer: Any) -> Losses:
    """Trains to the end, by the trainer's own loop, on one thread."""
    losses = watch(trainer)
    with one_thread():
        trainer.run_training()
    losses.weights = weights_hash(Path(trainer.output_folder) / "checkpoint_final.pth")
    return losses


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of the time of a short run; empty files stand in for them."""

    def touch(_: Any, file: Any, **__: Any) -> None:
        if isinstance(file, (str, os.PathLike)):
            Path(file).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.tight_layout", lambda *_, **__: None)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", touch)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, BLAS and OpenMP, whatever the environment says."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def weights_hash(checkpoint: Path) -> str:
    """Hash of `network_weights`: names, types, shapes and bytes."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["network_weights"]
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def arithmetic() -> dict[str, str]:
    """What decides in which order and with which instructions numbers are added here."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in COMPUTING},
    }


def _processor() -> str:
    """Name, model and vector instructions; matrix libraries choose their kernels by these."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor()
    first = file.read_text().split("\n\n")[0]
    parts = (line.partition(":") for line in first.splitlines())
    found = {key.strip(): value.strip() for key, _, value in parts}
    wanted = ("model name", "cpu family", "model", "stepping")
    vectors = (flag for flag in found.get("flags", "").split() if flag.startswith(VECTORS))
    return " ".join([*(found.get(key, "") for key in wanted), *sorted(vectors)])


class Records:
    """A file of recorded runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        found = json.loads(file.read_text()) if file.is_file() else {}
        self.arithmetic: dict[str, dict[str, str]] = found.get("arithmetic", {})
        self.runs: dict[str, dict[str, Any]] = found.get("runs", {})

    @staticmethod
    def recording() -> bool:
        """Whether this process records."""
        return os.environ.get(RECORD) == "1"

    def check(self, name: str, found: Losses) -> None:
        """Compares with the record of this name; while recording, writes it instead."""
        if self.recording():
            self._write(name, found)
            return
        if name not in self.runs:
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
            pytest.fail(
                f"there is no record of {name!r} in {self.file.name}. If the run is new, record it "
                f"and commit the file: {RECORD}=1 python -m pytest '{test}'"
            )
        run = self.runs[name]
        expected = Losses(_floats(run["train"]), _floats(run["validation"]), run["weights"])
        if self.is_of_here(name):
            _same_bits(name, expected, found)
        else:
            _same_beginning(name, expected, found)

    def is_of_here(self, name: str) -> bool:
        """Whether the record was made in the arithmetic of this process."""
        return self.arithmetic[self.runs[name]["arithmetic"]] == arithmetic()

    def _write(self, name: str, found: Losses) -> None:
        here = arithmetic()
        key = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:12]
        self.arithmetic[key] = here
        self.runs[name] = {
            "arithmetic": key,
            "train": [loss.hex() for loss in found.train],
            "validation": [loss.hex() for loss in found.validation],
            "weights": found.weights,
        }
        self.save()

    def keep(self, names: Collection[str]) -> None:
        """Drops the records of other names."""
        self.runs = {name: run for name, run in self.runs.items() if name in names}
        self.save()

    def save(self) -> None:
        used = {run["arithmetic"] for run in self.runs.values()}
        arithmetic = {key: value for key, value in sorted(self.arithmetic.items()) if key in used}
        content = {"arithmetic": arithmetic, "runs": dict(sorted(self.runs.items()))}
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(content, indent=1) + "\n")


def _floats(texts: list[str]) -> list[float]:
    return [float.fromhex(text) for text in texts]


def _same_bits(name: str, expected: Losses, found: Losses) -> None:
    for part in ("train", "validation"):
        before, now = getattr(expected, part), getattr(found, part)
        differing = [i for i, pair in enumerate(zip(before, now, strict=False)) if len({*pair}) > 1]
        if differing:
            step = differing[0]
            pytest.fail(
                f"{name}: {part} loss of step {step} was {before[step]!r} and is {now[step]!r}, "
                "with the same seed, on the same processor and with the same libraries"
            )
        assert len(before) == len(now), f"{name}: number of {part} steps"
    assert expected.weights == found.weights, f"{name}: same losses, but other final weights"


def _same_beginning(name: str, expected: Losses, found: Losses) -> None:
    for part in ("train", "validation"):
        assert len(getattr(expected, part)) == len(getattr(found, part)), f"{name}: {part} steps"
    before, now = expected.train[:FIRST_STEPS], found.train[:FIRST_STEPS]
    if now != pytest.approx(before, rel=RELATIVE):
        pytest.fail(
            f"{name}: the first training losses were {before} and are {now}. Processor or "
            f"libraries are not those of the record, but that explains {RELATIVE:g} at most"
        )
