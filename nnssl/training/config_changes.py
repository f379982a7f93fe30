"""One output folder, one run: no silent overwriting, no silent change of settings on a resume."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from nnssl.config import rename_knobs
from nnssl.nnunet.checkpoint import make_plain, read_checkpoint
from nnssl.nnunet.paths import CONFIG_FILE, FINAL

_NOT_SET = "(not set)"


def refuse_overwrite(output_folder: str | Path, config: Mapping[str, Any], overwrite: bool) -> None:
    """Stops when the folder of a fold holds a finished run with another resolved configuration.

    `config` are the sections, or `Config.to_dict()`; `overwrite` allows it.

    Raises:
        RuntimeError: with the differences and the ways out.
    """
    finished = Path(output_folder) / FINAL
    if overwrite or not finished.is_file():
        return
    if found := _compare_with_file(finished, config):
        raise RuntimeError(
            f"{output_folder} holds a finished run with another configuration:\n"
            + "\n".join(f"  {line}" for line in found)
            + "\nIt is not overwritten. Ways out: copy the YAML file to another name and train "
            "with that name (-tr), or set another nnUNet_results, or set `overwrite: true` in the "
            "section `training` (for one run: nnssl_overrides='training.overwrite=true')."
        )


def _compare_with_file(finished: Path, config: Mapping[str, Any]) -> list[str]:
    try:
        stored = read_checkpoint(finished).get("nnssl", {}).get("config")
    except ValueError as error:
        return [str(error)]
    if stored is None:
        return ["its checkpoint_final.pth was not written by nnSSL"]
    differing = _find_differences(stored, config, ignored={"training.overwrite", "probe"})
    return [f"{name}: finished run {old!r}, now {new!r}" for name, old, new in differing]


def write_resolved_config(output_folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Writes `resolved_config.yaml`, the configuration with every default filled in."""
    path = Path(output_folder) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(make_plain(config), sort_keys=False), encoding="utf-8")
    return path


def compare_resume(
    stored: Mapping[str, Any], today: Mapping[str, Any], may_change: Collection[str]
) -> list[str]:
    """Compares a checkpoint's configuration with today's; returns the lines to log.

    Args:
        stored, today: sections, or `Config.to_dict()`.
        may_change: dotted names, or whole sections, that may differ (`training.num_epochs`).

    Raises:
        ValueError: anything else differs, with both values.
    """
    differing = _find_differences(stored, today, ignored=set())
    if refused := [entry for entry in differing if not _is_covered(entry[0], may_change)]:
        raise ValueError(
            "The run cannot be continued, because its settings changed since it was started:\n"
            + "\n".join(f"  {name}: stored {old!r}, today {new!r}" for name, old, new in refused)
            + "\nPut the former values back, or start a new run under another trainer name."
            f"\nOn a resume these may change: {', '.join(sorted(may_change))}."
        )
    return [f"{name} changed from {old!r} to {new!r}" for name, old, new in differing]


def _is_covered(name: str, may_change: Collection[str]) -> bool:
    return any(name == allowed or name.startswith(f"{allowed}.") for allowed in may_change)


def _find_differences(
    stored: Mapping[str, Any], today: Mapping[str, Any], ignored: set[str]
) -> list[tuple[str, Any, Any]]:
    old, new = (_flatten(make_plain(rename_knobs(c.get("sections", c)))) for c in (stored, today))
    names = [name for name in {**old, **new} if not _is_covered(name, ignored)]
    pairs = ((name, old.get(name, _NOT_SET), new.get(name, _NOT_SET)) for name in names)
    return [(name, a, b) for name, a, b in pairs if a != b]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict) and entry:
            flat |= _flatten(entry, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = entry
    return flat
