"""Small file operations that every dataset command shares."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

TEMPORARY = ".part_"  # prefix of a file that is being written


def temporary(path: Path) -> Path:
    """The name under which ``path`` is written before it is renamed (same folder, same ending)."""
    return path.with_name(TEMPORARY + path.name)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; several processes may write the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{TEMPORARY}{uuid4().hex}_{path.name}")
    try:
        own.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is named.

    Raises:
        ValueError: The file is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error


def put_back(copy: Path, target: Path) -> bool:
    """Write the JSON of ``copy`` to ``target`` if nothing is there; says whether it did."""
    if target.exists() or not copy.exists():
        return False
    write_json(target, read_json(copy))
    return True


def sha256_of(content: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
