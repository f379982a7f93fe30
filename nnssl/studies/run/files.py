"""Where the YAML files of studies lie, and how they are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nnssl.common.checks import near, plain
from nnssl.common.files import atomic_path
from nnssl.config.files import INSTALLED, RawConfig, parse_yaml, user_folders

FOLDER = "studies"
ABOUT = ("name", "summary", "paper", "differs")


def find_studies() -> dict[str, Path]:
    """Returns name -> file; a user's folders (`<folder>/studies/*.yaml`) come before the shipped.

    The environment variable `nnssl_configs` names a user's folders.
    """
    found: dict[str, Path] = {}
    for folder in (*user_folders(), INSTALLED):
        files = sorted((folder / FOLDER).glob("*.y*ml"))
        found = {file.stem: file for file in files} | found
    return dict(sorted(found.items()))


def study_file(name_or_path: str | Path) -> Path:
    """The file that is meant.

    Raises:
        ValueError: neither a file nor a known name.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = find_studies()
    if str(name_or_path) not in known:
        raise ValueError(
            f"there is no study {str(name_or_path)!r}{near(str(name_or_path), known)}; known: "
            f"{', '.join(known) or 'none'}; or give the path of a YAML file"
        )
    return known[str(name_or_path)]


def read_yaml(file: Path) -> RawConfig:
    """Reads a file and checks its head; its sections are checked by `nnssl.config.bind`.

    Raises:
        ValueError: it cannot be read, is no mapping, is no study.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("kind") != "study":
        raise ValueError(f"{file}: a study must begin with `kind: study`")
    sections = {key: value for key, value in content.items() if key not in ("kind", "about")}
    about = content.get("about") or {}
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError(f"{file}: about = {about!r}; must be a mapping of texts")
    for key in about:
        if key not in ABOUT:
            hint, allowed = near(str(key), ABOUT), ", ".join(ABOUT)
            raise ValueError(f"{file}: about.{key}: unknown{hint}; allowed: {allowed}")
    return RawConfig(file.stem, "study", about, sections, ((file, content),))


def write_yaml(file: Path, raw: RawConfig) -> None:
    """Writes what `read_yaml` reads, whole or not at all."""
    content: dict[str, Any] = {"kind": raw.kind, "about": raw.about, **raw.sections}
    text = yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True)
    with atomic_path(file) as part:
        part.write_text(text, encoding="utf-8")
