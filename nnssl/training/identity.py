"""What a run is: one record of all that it depends on, and the one comparison of such records.

A fresh run, a continued one and one that is only validated are compared with what the folder holds
by the same record. What an older version did not record counts as unknown and is not compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.common.files import hash_file, read_json
from nnssl.common.locks import LOCK
from nnssl.common.versions import versions
from nnssl.config import Config, rename_knobs
from nnssl.nnunet.checkpoint import find_plans, make_plain, read_checkpoint
from nnssl.nnunet.paths import CHECKPOINTS, DATASET_FILE, FINAL, FORMER, PLANS_FILE

Identity = Mapping[str, Mapping[str, Any]]  # part -> name -> value; a part may be missing
RANDOM_WEIGHTS = {"file": "none", "sha256": "none"}
# of dataset.json: what decides which channels a network reads and which labels it writes
DESCRIBED = ("labels", "regions_class_order", "channel_names", "modality", "file_ending")
NAMES_OF_WEIGHTS = {"training.initial_weights", "weights.source"}
TARGETS = "dense targets"
COMPARED_WHERE_KNOWN = {"cases", "weights", TARGETS}
ONLY_TOLD = {"versions"}  # an update of a library must not strand a run
KEPT_IN_PLACE = (LOCK, "training_log_*.txt", f"{FORMER}*", "wandb")
NOT_SET = "(not set)"
MOST_NAMED = 3


class Difference(NamedTuple):
    """One value in which two runs differ; settings are named by their knob."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if isinstance(self.old, list) and isinstance(self.new, list):
            pairs = (("more", self.new, self.old), ("fewer", self.old, self.new))
            told = [_say_extra(word, [x for x in a if x not in b]) for word, a, b in pairs]
            if any(told) and max(len(self.old), len(self.new)) > MOST_NAMED:
                return f"{self.name}: today {', '.join(filter(None, told))}"
        return f"{self.name}: stored {self.old!r}, today {self.new!r}"


def _say_extra(word: str, items: list[Any]) -> str:
    named = ", ".join(map(str, items[:MOST_NAMED])) + ", ..." * (len(items) > MOST_NAMED)
    return f"{len(items)} {word} ({named})" if items else ""


# ---------------------------------------------------------------------- the record


def describe_data(
    plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The parts `plans` and `dataset.json`: one configuration with what it inherits."""
    own = PlansManager(dict(plans)).get_configuration(configuration).configuration
    shared = {k: v for k, v in plans.items() if k not in ("configurations", "continue_training")}
    dataset = {key: dataset_json[key] for key in DESCRIBED if key in dataset_json}
    parts: dict[str, dict[str, Any]] = make_plain({"plans": shared | own, "dataset.json": dataset})
    return parts


def describe_weights(file: str | Path | None) -> dict[str, str]:
    """The part `weights`: a file, by its content where it is there; None: random weights."""
    if file is None:
        return RANDOM_WEIGHTS
    content = {"sha256": hash_file(Path(file))} if Path(file).is_file() else {}
    return {"file": str(file), **content}


def compose_identity(
    data: Identity, config: Config, cases: Mapping[str, Any], weights: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The record of a run.

    Args:
        data: see `describe_data`.
        config: resolved.
        cases: names of the fold's cases that are trained on, and of those that it validates.
        weights: see `describe_weights`; empty where they are not known.
    """
    found = versions("nnunetv2", "torch")
    own = {"settings": config.sections, "cases": cases, "weights": weights, "versions": found}
    parts: dict[str, dict[str, Any]] = make_plain({**data, **own})
    return parts


def read_identity(checkpoint: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The record in a checkpoint of ours; of an older version, what can be told of it."""
    own: Mapping[str, Any] = checkpoint["nnssl"]
    if "identity" in own:
        return dict(own["identity"])
    config, cases = own["config"], own.get("cases") or {}
    settings, labels = config.get("sections", config), own.get("labels") or {}
    if own.get("kind") == "finetune":
        file, known = own.get("weights", {}).get("source"), {"train": labels.get("cases")}
        random = own.get("weights", {}).get("how") == "random"
    else:
        file = settings.get("training", {}).get("initial_weights")
        known = {"train": cases.get("train"), "validation": cases.get("left_out")}
        random = file is None
    found, dataset_json = find_plans(checkpoint), (checkpoint.get("init_args") or {})
    data = describe_data(*found, dataset_json.get("dataset_json") or {}) if found else {}
    return {
        **{part: content for part, content in data.items() if content},
        "settings": settings,
        "cases": {name: names for name, names in known.items() if names is not None},
        "weights": RANDOM_WEIGHTS if random else {"file": file} if file else {},
        "versions": own.get("versions", {}),
    }


# ---------------------------------------------------------------------- the comparison


def find_differences(stored: Identity, today: Identity) -> list[Difference]:
    """All differences in the parts that both have."""
    found = [
        difference
        for part in today
        if part in stored
        for difference in _compare_part(part, stored[part], today[part])
    ]
    hashes = [run.get("weights", {}).get("sha256") for run in (stored, today)]
    by_content = None not in hashes  # then the paths that name them tell nothing
    return [each for each in found if not (by_content and each.name in NAMES_OF_WEIGHTS)]


def _compare_part(
    part: str, stored: Mapping[str, Any], today: Mapping[str, Any]
) -> Iterator[Difference]:
    old, new = (make_plain(values) for values in (stored, today))
    if part == "settings":
        old, new = rename_knobs(old), rename_knobs(new)
    old, new = _flatten(old), _flatten(new)
    if part == "weights" and "sha256" in old and "sha256" in new:
        if old["sha256"] != new["sha256"]:
            yield Difference(part, _name_weights(old), _name_weights(new))
        return
    for name in dict.fromkeys([*old, *new]):
        if part in COMPARED_WHERE_KNOWN and not (name in old and name in new):
            continue
        before, now = old.get(name, NOT_SET), new.get(name, NOT_SET)
        if before != now and repr(before) != repr(now):  # NaN is not itself
            yield Difference(name if part == "settings" else f"{part}.{name}", before, now)


def _name_weights(weights: Mapping[str, str]) -> str:
    return f"{weights['file']} (sha256 {weights['sha256'][:12]})"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict) and entry:
            flat |= _flatten(entry, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = entry
    return flat


def _may_change(name: str, allowed: Collection[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in {*allowed, *ONLY_TOLD})


def refuse_changes(
    stored: Identity, today: Identity, may_change: Collection[str] = ()
) -> list[str]:
    """Compares a run with what it would go on as; returns the lines to log.

    Args:
        stored: the record of the run.
        today: the same, or some parts of it.
        may_change: dotted names, or whole sections, that may differ (`training.num_epochs`).

    Raises:
        ValueError: anything else differs, with both values.
    """
    found = find_differences(stored, today)
    if refused := [each for each in found if not _may_change(each.name, may_change)]:
        raise ValueError(
            "The run can be neither continued nor validated, because it was begun as another one:\n"
            + "\n".join(f"  {each}" for each in refused)
            + "\nPut the former values back; or start a new run with another nnUNet_results, or "
            "under another name of plans (-p) or trainer (-tr)."
            + f"\nOn a resume these may change: {', '.join(sorted(may_change))}."
            * bool(may_change)
        )
    return [f"{name} changed from {old!r} to {new!r}" for name, old, new in found]


# ---------------------------------------------------------------------- a fresh run in a folder


def refuse_occupied(
    folder: Path, today: Identity, may_change: Collection[str], command: str
) -> None:
    """Stops a fresh run in the folder of a fold that holds one, the same or another.

    Args:
        folder: of the fold.
        today: the record of the fresh run.
        may_change: see `refuse_changes`.
        command: that trains here, without `--c`.

    Raises:
        RuntimeError: with the differences and the ways out.
    """
    if (file := _find_checkpoint(folder)) is not None:
        raise RuntimeError(
            _describe_occupant(file, today, may_change, command)
            + f"\nTo begin anew: nnssl_overrides='training.overwrite=true' moves what the folder "
            f"holds to {FORMER}1 (2, 3, ...) in it. To keep both apart: another nnUNet_results, or "
            "a copy of the trainer's YAML file under another name (-tr)."
        )


def _find_checkpoint(folder: Path) -> Path | None:
    return next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)


def _describe_occupant(
    file: Path, today: Identity, may_change: Collection[str], command: str
) -> str:
    kept = "Nothing is overwritten."
    try:
        checkpoint = read_checkpoint(file, mmap=True)
    except ValueError as error:
        return f"{file.parent} holds a run that cannot be told: {error}\n{kept}"
    if "config" not in checkpoint.get("nnssl", {}):
        return f"{file.parent} holds a run that was not written by nnSSL ({file.name}). {kept}"
    stored = read_identity(checkpoint)
    found = [
        each
        for each in find_differences(stored, today)
        if not _may_change(each.name, ("training.overwrite",))
    ]
    done, epochs = checkpoint.get("current_epoch"), stored["settings"]["training"]["num_epochs"]
    state = (
        "a finished run" if file.name == FINAL else f"a run stopped after {done} of {epochs} epochs"
    )
    lines = [f"{file.parent} holds {state}"]
    if found:
        lines[0] += ", and it is another one than this:"
        lines += [f"  {each}" for each in found]
    else:
        lines[0] += ", and it is just this one."
    lines.append(kept)
    if not all(_may_change(each.name, may_change) for each in found):
        return "\n".join(lines)
    if found or file.name != FINAL:
        lines.append(f"Continue it with: {command} --c")
    else:
        lines.append(f"Nothing is left to do; its validation alone is repeated by: {command} --val")
    return "\n".join(lines)


def set_aside(folder: Path) -> Path | None:
    """Moves the run that a folder holds into a folder of its own, which is returned.

    The logs stay: they have names of their own, and today's is among them.
    """
    if _find_checkpoint(folder) is None:
        return None
    target = next(t for n in count(1) if not (t := folder / f"{FORMER}{n}").exists())
    target.mkdir()
    for entry in sorted(folder.iterdir()):
        if not any(entry.match(pattern) for pattern in KEPT_IN_PLACE):
            entry.rename(target / entry.name)
    return target


def refuse_plans_of_other_folds(folder: Path, today: Identity, configuration: str) -> None:
    """Stops a fold whose plans would replace those that finished folds predict by.

    nnU-Net keeps one `plans.json` and `dataset.json` for all folds of a trainer.

    Raises:
        RuntimeError: with the fold and the differences.
    """
    base, others = folder.parent, [f for f in folder.parent.glob("fold_*") if f != folder]
    trained = [other for other in sorted(others) if _find_checkpoint(other)]
    plans, dataset = base / PLANS_FILE, base / DATASET_FILE
    if not trained or not plans.is_file() or not dataset.is_file():
        return
    stored = describe_data(read_json(plans), configuration, read_json(dataset))
    if found := find_differences(stored, {part: today[part] for part in stored}):
        raise RuntimeError(
            f"{trained[0]} was trained by other plans than this fold would be, and all folds of "
            "a trainer share one plans.json:\n"
            + "\n".join(f"  {each}" for each in found)
            + "\nNothing is overwritten. Give the new plans another name (-p), or set another "
            "nnUNet_results."
        )
