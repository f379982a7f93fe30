"""Makes nnU-Net know every trainer of nnSSL: one forwarding module in its trainer folder.

Works for pip and editable installations of nnU-Net, needs no import of it, and can be undone.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from nnssl.common.environment import read_variable

EXTERNAL_FOLDER = Path(__file__).resolve().parents[1] / "external_trainers"
SOURCE = EXTERNAL_FOLDER / "nnssl_trainers.py"
MODULE_NAME = "nnssl_registration.py"
EXTERNAL_VARIABLE = "nnUNet_extTrainer"
EXTERNAL_SINCE = (2, 8)
SUPPORTED = ">=2.6.2,<2.9"

State = Literal["registered", "outdated", "absent"]


def nnunet_version() -> str | None:
    """Returns the version of the installed nnU-Net, or None."""
    try:
        return version("nnunetv2")
    except PackageNotFoundError:
        return None


def trainer_folder() -> Path:
    """Returns the folder in which nnU-Net looks for trainers.

    Raises:
        ValueError: nnU-Net is not installed in this environment.
    """
    spec = find_spec("nnunetv2")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    for location in locations:
        folder = Path(location) / "training" / "nnUNetTrainer"
        if folder.is_dir():
            return folder
    raise ValueError(
        f"no nnU-Net with a trainer folder in this environment, found {locations or None}; "
        f"pip install 'nnunetv2{SUPPORTED}'"
    )


def find_state(folder: Path) -> State:
    """Says whether the forwarding module is in `folder`, and whether it is this version's."""
    module = folder / MODULE_NAME
    if not module.is_file():
        return "absent"
    return "registered" if module.read_bytes() == SOURCE.read_bytes() else "outdated"


def is_registered_externally() -> bool:
    """Whether nnU-Net (2.8 or later) finds the forwarding module through its own variable."""
    entries = (read_variable(EXTERNAL_VARIABLE) or "").split(os.pathsep)
    named = any(entry.strip() and Path(entry).resolve() == EXTERNAL_FOLDER for entry in entries)
    return named and supports_external()


def supports_external() -> bool:
    """Whether the installed nnU-Net reads `nnUNet_extTrainer`."""
    return _numbers(nnunet_version() or "0") >= EXTERNAL_SINCE


def is_supported() -> bool:
    """Whether nnU-Net is installed in a version that nnSSL is tested with."""
    lowest, beyond = (_numbers(limit.lstrip("<>=")) for limit in SUPPORTED.split(","))
    return lowest <= _numbers(nnunet_version() or "0") < beyond


def register(folder: Path) -> Path:
    """Writes the forwarding module into nnU-Net's trainer folder; doing it again changes nothing.

    Raises:
        ValueError: the folder cannot be written; the message says what to do instead.
    """
    module = folder / MODULE_NAME
    if find_state(folder) == "registered":
        return module
    # nnU-Net imports every .py file of the folder, also a half-written one: so another ending.
    temporary = folder / f".{MODULE_NAME}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(SOURCE.read_bytes())
        temporary.replace(module)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ValueError(_refusal(folder, error)) from error
    return module


def undo(folder: Path) -> bool:
    """Removes the forwarding module and its bytecode; returns whether there was one.

    Raises:
        ValueError: the folder cannot be written.
    """
    module = folder / MODULE_NAME
    existed = module.exists()
    try:
        module.unlink(missing_ok=True)
        for bytecode in (folder / "__pycache__").glob(f"{module.stem}.*.pyc"):
            bytecode.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{module} cannot be removed: {error}") from error
    return existed


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _refusal(folder: Path, error: OSError) -> str:
    advice = "" if supports_external() else ": update it, or install nnU-Net where you may write"
    return (
        f"{folder} cannot be written ({error.strerror or error}). Instead let nnU-Net look here:\n"
        f"  export {EXTERNAL_VARIABLE}=$(nnssl_register --path)\n"
        f"(needs nnU-Net >= 2.8; the installed one is {nnunet_version() or 'none'}{advice})"
    )
