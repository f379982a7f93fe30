"""Files: written whole or not at all; JSON; hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4
from zipfile import BadZipFile

from nnssl.common.content import check_content

TEMPORARY = ".part_"  # prefix of a file that is being written
DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error)  # of NumPy's archives
SECONDS_IN_WORK = 3600.0  # a part that nobody has written to for so long is a killed run's


@contextmanager
def atomic_path(path: Path, sole_writer: bool = False) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` at the end and is removed after an error.

    A reader sees the former file or the whole new one, never a part. The temporary file lies in the
    same folder and has the same ending.

    Args:
        path: the file; its folder is made where it is missing.
        sole_writer: no other process writes this file at the same time, so what a killed run has
            left is overwritten. Else the temporary name is unique.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = "" if sole_writer else f"{uuid4().hex}_"
    part = path.with_name(f"{TEMPORARY}{unique}{path.name}")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_old_parts(path: Path, seconds: float = SECONDS_IN_WORK) -> None:
    """Removes temporary files of `path` that killed runs have left so many seconds ago."""
    own = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{32}}_)?{re.escape(path.name)}")
    for part in path.parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # another process may remove it first
            if own.fullmatch(part.name) and time() - part.stat().st_mtime > seconds:
                part.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; several processes may write the same file at once."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Read a JSON file that holds what is expected.

    Args:
        path: the file.
        kind: what its content must be, as an annotation, see `check_content`.

    Raises:
        ValueError: it is not valid JSON, or holds something else; names file, place, what was
            found and what is allowed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        found = str(error).replace("(decode using utf-8-sig)", "(save it as UTF-8 without BOM)")
        raise ValueError(f"{path} is not valid JSON ({found})") from error
    return check_content(content, kind, str(path))


def put_back(copy: Path, target: Path) -> None:
    """Write the JSON of ``copy`` to ``target`` if nothing is there."""
    if copy.exists() and not target.exists():
        write_json(target, read_json(copy, Any))


def stamp_file(path: Path) -> list[int]:
    """Size and time of a file, which change when it does."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def hash_json(content: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
