"""`nnssl_doctor`: prints in one table what a support question needs."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import nnssl
from nnssl.cli.command import command, read_each, table
from nnssl.common.environment import read_variable
from nnssl.common.errors import TRACEBACK
from nnssl.common.versions import versions
from nnssl.config import find_configs, read_config
from nnssl.nnunet import registration
from nnssl.nnunet.namesakes import SAY, describe_parts, list_cases
from nnssl.nnunet.paths import PREPROCESSED, RAW, RESULTS, WEIGHTS, find_root

PACKAGES = (
    "torch",
    "numpy",
    "batchgenerators",
    "batchgeneratorsv2",
    "dynamic-network-architectures",
    "acvl-utils",
    "SimpleITK",
    "nibabel",
    "blosc2",
)
FOLDERS = (RAW, PREPROCESSED, RESULTS)
OPTIONAL = (
    "nnssl_configs",
    "nnssl_overrides",
    WEIGHTS,
    TRACEBACK,
    "nnUNet_extTrainer",
    "nnUNet_compile",
    "CUDA_VISIBLE_DEVICES",
)
GIBIBYTE = 2**30
LEAST_FREE_DISK = 10 * GIBIBYTE
LEAST_SHARED_MEMORY = GIBIBYTE
SHARED_MEMORY = Path("/dev/shm")
OTHER_PROJECT = Path("nnssl", "training", "nnsslTrainer")  # only DKFZ's package has this folder


class Diagnosis(NamedTuple):
    """One line of the table."""

    item: str
    value: str
    verdict: Literal["ok", "note", "warning", "problem"] = "ok"
    advice: str = ""

    def warn_if(self, doubtful: bool, advice: str) -> Diagnosis:
        """The same line, or a warning with advice."""
        return self._replace(verdict="warning", advice=advice) if doubtful else self


@command(
    "nnssl_doctor",
    "Prints versions, variables, registration and hardware in one table. "
    "The exit code is 1 if something would stop a training.",
    example="",
)
def main(_: Namespace) -> int:
    findings = list(examine())
    print(table(("item", "found", "verdict", "advice"), findings))
    problems = sum(finding.verdict == "problem" for finding in findings)
    warnings = sum(finding.verdict == "warning" for finding in findings)
    print(f"\n{problems} problems, {warnings} warnings")
    return 1 if problems else 0


def examine() -> Iterator[Diagnosis]:
    """Yields every finding, in the order of the table."""
    yield from _versions()
    yield from _name_clash()
    yield _registration()
    yield _trainers()
    for name in FOLDERS:
        yield from _folder(name)
    yield from _patients()
    for name in OPTIONAL:
        yield Diagnosis(f"${name}", read_variable(name) or "not set", "note")
    yield from _hardware()


def _versions() -> Iterator[Diagnosis]:
    yield Diagnosis("system", platform.platform(), "note")
    yield Diagnosis("python", f"{platform.python_version()} ({sys.executable})")
    yield Diagnosis("nnssl", f"{nnssl.__version__} ({Path(nnssl.__file__).parent})")
    found = registration.nnunet_version() or "not installed"
    if registration.is_supported():
        yield Diagnosis("nnunetv2", f"{found} (supported {registration.SUPPORTED})")
    else:
        advice = f"pip install 'nnunetv2{registration.SUPPORTED}'"
        yield Diagnosis("nnunetv2", found, "problem", advice)
    installed = versions(*PACKAGES)
    for package in PACKAGES:
        if installed[package] == "not installed":
            yield Diagnosis(package, "not installed", "problem", f"pip install {package}")
        else:
            yield Diagnosis(package, installed[package])


def _name_clash() -> Iterator[Diagnosis]:
    """DKFZ's package of the same import name shadows ours, or is shadowed by it."""
    for entry in dict.fromkeys(sys.path):
        folder = Path(entry or ".") / OTHER_PROJECT
        if folder.is_dir():
            advice = "use separate environments: DKFZ's package has the same import name"
            yield Diagnosis("import name nnssl", f"also {folder.parents[1]}", "problem", advice)


def _registration() -> Diagnosis:
    try:
        folder = registration.trainer_folder()
    except ValueError as error:
        return Diagnosis("registration", "no nnU-Net", "problem", str(error))
    if registration.is_registered_externally():
        return Diagnosis("registration", f"${registration.EXTERNAL_VARIABLE}")
    state = registration.find_state(folder)
    if state == "registered":
        return Diagnosis("registration", str(folder / registration.MODULE_NAME))
    return Diagnosis("registration", f"{state} in {folder}", "problem", "run nnssl_register")


def _trainers() -> Diagnosis:
    try:
        found, problems = read_each(find_configs(), read_config)
    except ValueError as error:
        return Diagnosis("trainers", "cannot be searched", "problem", str(error))
    if problems:
        return Diagnosis("trainers", f"{len(problems)} broken", "problem", "; ".join(problems))
    return Diagnosis("trainers", f"{len(found)} (nnssl_trainers lists them)")


def _folder(name: str) -> Iterator[Diagnosis]:
    text = read_variable(name)
    if not text:
        yield Diagnosis(f"${name}", "not set", "problem", f"export {name}=<folder>")
        return
    folder = Path(text)
    if not folder.is_dir():
        yield Diagnosis(
            f"${name}", f"{text} does not exist", "problem", f"mkdir -p {shlex.quote(text)}"
        )
        return
    locked = not os.access(folder, os.W_OK)
    found = Diagnosis(f"${name}", f"{text} is not writable" if locked else text)
    yield found.warn_if(locked, "only reading will work")
    free = shutil.disk_usage(folder).free
    advice = "checkpoints and preprocessed data need room"
    yield Diagnosis("  free disk", _gibibytes(free)).warn_if(free < LEAST_FREE_DISK, advice)


def _patients() -> Iterator[Diagnosis]:
    """Datasets whose cases look like parts of patients, while nothing says whose they are."""
    root = find_root(PREPROCESSED)
    for dataset in sorted(root.glob("Dataset*_*")) if root else ():
        if text := describe_parts(dataset, list_cases(dataset)):
            what, _, advice = text.rpartition(SAY)
            yield Diagnosis(dataset.name, what, "warning", advice)


def _hardware() -> Iterator[Diagnosis]:
    yield from _gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Diagnosis("CPU cores", f"{cores} usable of {os.cpu_count()}")
    yield _workers()
    if SHARED_MEMORY.is_dir():
        usage = shutil.disk_usage(SHARED_MEMORY)
        value = f"{_gibibytes(usage.free)} free of {_gibibytes(usage.total)}"
        advice = "workers may die with a bus error; docker run --shm-size=8g"
        small = usage.total < LEAST_SHARED_MEMORY
        yield Diagnosis("shared memory", value).warn_if(small, advice)


def _gpus() -> Iterator[Diagnosis]:
    try:
        import torch
    except ImportError as error:
        yield Diagnosis("GPU", "torch cannot be imported", "problem", str(error))
        return
    yield Diagnosis("CUDA of torch", torch.version.cuda or "none (a CPU build)", "note")
    if not torch.cuda.is_available():
        yield Diagnosis("GPU", "none usable", "warning", "train with -device cpu, on small plans")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Diagnosis(f"GPU {index}", f"{gpu.name}, {_gibibytes(gpu.total_memory)}")


def _workers() -> Diagnosis:
    text = read_variable("nnUNet_n_proc_DA")
    if text is not None and not text.isdigit():
        advice = "export nnUNet_n_proc_DA=<number of processes>"
        return Diagnosis("$nnUNet_n_proc_DA", text, "problem", advice)
    try:
        from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

        count = get_allowed_n_proc_DA()
    except (ImportError, ValueError) as error:  # ValueError: the variable is set to nothing
        return Diagnosis("workers", "unknown", "problem", str(error))
    source = "$nnUNet_n_proc_DA" if text else "nnU-Net's choice; $nnUNet_n_proc_DA is not set"
    advice = "nnU-Net 2.8's planner stops at 0 workers; set nnUNet_n_proc_DA to 1 or more"
    return Diagnosis("workers", f"{count} ({source})").warn_if(not count, advice)


def _gibibytes(size: int) -> str:
    return f"{size / GIBIBYTE:.1f} GiB"
