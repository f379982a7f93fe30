"""A pool from request to files: check everything, write, preprocess case by case, plans last."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json, sha256_of, write_json
from nnssl.common.parallel import for_each
from nnssl.common.versions import versions
from nnssl.convert.engine import ConversionTarget
from nnssl.convert.records import CONVERSION_FILE
from nnssl.data.pool import plans as pool_plans
from nnssl.data.pool.assemble import DatasetPool, assemble
from nnssl.data.pool.members import FINGERPRINT, read_member
from nnssl.data.pool.preprocess import Folders, PoolTask, preprocess
from nnssl.data.pool.settings import (
    WINDOW,
    CaseSettings,
    SpacingPolicy,
    isotropic,
    median_shape,
    settings_of,
    window_statistics,
)
from nnssl.nnunet.paths import CASES_FILE, SPLITS_FILE, Roots, plans_file

UNIVERSAL = "universal"


@dataclass(frozen=True)
class PoolRequest:
    """What the user asks for.

    Attributes:
        number: id of the pool.
        name: its name.
        members: ids of the datasets.
        plans: name of the plans: those of `plans_of`, or the new ones.
        configuration: `2d` or `3d_fullres`, for instance.
        plans_of: id of the dataset whose architecture and patch the pool gets; None: nnU-Net's
            planner plans for the mix.
        spacing: policy.
        spacing_of: id of the dataset whose planned spacing `target` means; None: the plans' own.
        window: bounds of CT in HU; None: those of the plans of `plans_of`, else -1000 to 1000.
        planner: nnU-Net's planner for the mix.
    """

    number: int
    name: str
    members: tuple[int, ...]
    plans: str
    configuration: str
    plans_of: int | None = None
    spacing: SpacingPolicy = "target"
    spacing_of: int | None = None
    window: tuple[float, float] | None = None
    planner: str = pool_plans.PLANNER


@dataclass(frozen=True)
class Draft:
    """A checked request; nothing is written yet.

    Attributes:
        request: what was asked for.
        roots: nnU-Net's folders.
        target: the pool's folders.
        pool: its cases and folds.
        source: plans of `plans_of`.
        window: statistics of CT.
        spacing: planned spacing of `spacing_of`.
    """

    request: PoolRequest
    roots: Roots
    target: ConversionTarget
    pool: DatasetPool
    source: Mapping[str, Any] | None
    window: Mapping[str, float]
    spacing: list[float] | None

    def plans(self) -> dict[str, Any]:
        """The pool's plans; nnU-Net's planner needs what `_describe` writes."""
        request = self.request
        source = self.source
        if source is None:
            source = pool_plans.universal(self.pool, request.plans, request.planner)
        plans = pool_plans.like(source, [request.configuration], self.pool)
        plans["foreground_intensity_properties_per_channel"] = {"0": dict(self.window)}
        configuration = plans["configurations"][request.configuration]
        spacing = list(self.spacing or configuration["spacing"])
        even = request.spacing == "isotropic"
        configuration["spacing"] = isotropic(spacing) if even else spacing
        return plans

    def settings(self, planned: Sequence[float]) -> dict[str, CaseSettings]:
        """Identifier -> settings."""
        policy = self.request.spacing
        return {c.identifier: settings_of(c, policy, planned, self.window) for c in self.pool.cases}


def draft(request: PoolRequest, roots: Roots) -> Draft:
    """Read all members and check that they fit together; nothing of the pool is written.

    Raises:
        ValueError: something is missing, does not fit, or stands where the pool would go.
    """
    target = ConversionTarget.of(roots.raw, roots.preprocessed, request.number, request.name)
    members = [read_member(roots, number) for number in request.members]
    pool = assemble(target.raw.name, members)
    source = None if request.plans_of is None else read_plans(roots, request.plans_of, request)
    if source is not None:
        pool_plans.like(source, [request.configuration], pool)
    known = None if source is None else pool_plans.ct_statistics(source)
    window = window_statistics(*(request.window or WINDOW))
    spacing = None
    if request.spacing_of is not None:
        configurations = read_plans(roots, request.spacing_of, request)["configurations"]
        spacing = configurations[request.configuration]["spacing"]
    if known is not None and request.window is None:
        window = known
    made = Draft(request, roots, target, pool, source, window, spacing)
    _refuse_another(made)
    return made


def read_plans(roots: Roots, number: int, request: PoolRequest) -> dict[str, Any]:
    """Plans of a dataset under the name asked for.

    Raises:
        ValueError: the dataset has none, or they lack the configuration.
    """
    path = plans_file(number, request.plans, roots.preprocessed)
    plans: dict[str, Any] = read_json(path)
    if request.configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise ValueError(
            f"{path} has no configuration {request.configuration}; it has {known} (-c)"
        )
    return plans


def build(made: Draft, workers: int) -> dict[str, Any]:
    """Write the pool; what an earlier run has finished stays. The plans come last.

    Args:
        made: the checked request.
        workers: processes.

    Returns:
        The plans.
    """
    _describe(made)
    plans = made.plans()
    name = made.request.configuration
    configuration = plans["configurations"][name]
    settings = made.settings(configuration["spacing"])
    folders = Folders.of(made.target.preprocessed, configuration["data_identifier"])
    for folder in (folders.cases, folders.own):
        folder.mkdir(parents=True, exist_ok=True)
    tasks = pool_tasks(made.pool, settings, folders)
    missing = [task for task in tasks if task.record() is None]
    for_each(partial(preprocess, plans=plans, configuration=name), missing, workers, "preprocess")
    by_member = {case.member.folder: settings[case.identifier] for case in made.pool.cases}
    configuration["median_image_size_in_voxels"] = median_shape(made.pool, by_member)
    _record(made, {task.identifier: read_json(folders.record(task.identifier)) for task in tasks})
    _write_plans(made, plans)
    return plans


def pool_tasks(
    pool: DatasetPool, settings: Mapping[str, CaseSettings], folders: Folders
) -> list[PoolTask]:
    """One task per case of the pool."""
    return [
        PoolTask(
            each.identifier,
            each.source,
            each.image,
            each.index,
            each.orientation,
            settings[each.identifier],
            folders,
        )
        for each in pool.cases
    ]


def _key(made: Draft) -> str:
    return f"{made.request.plans}_{made.request.configuration}"


def _asked(made: Draft) -> dict[str, Any]:
    """Settings that decide what the preprocessed files hold."""
    keys = ("plans_of", "spacing", "spacing_of", "window", "planner")
    asked = asdict(made.request)
    window = asked["window"]
    return {key: asked[key] for key in keys} | {"window": None if window is None else list(window)}


def _refuse_another(made: Draft) -> None:
    """Raises ValueError where the folder holds another pool, or none."""
    target = made.target
    if not target.raw.exists():
        return
    path = target.raw / CONVERSION_FILE
    found = read_json(path) if path.exists() else {}
    if found.get("job") != made.pool.job:
        raise ValueError(
            f"{target.raw} exists already and was made from other members, images or folds; delete "
            f"it and {target.preprocessed}, or choose another id"
        )
    known = found["configurations"].get(_key(made), {}).get("asked", _asked(made))
    if known != _asked(made):
        raise ValueError(
            f"{_key(made)} of {target.preprocessed} was made with other settings ({known}; now "
            f"{_asked(made)}); delete the pool, or choose another id"
        )


def _describe(made: Draft) -> None:
    """What says which pool this is, and what nnU-Net's planner reads."""
    raw, preprocessed = made.target.raw, made.target.preprocessed
    path = raw / CONVERSION_FILE
    known = read_json(path)["configurations"] if path.exists() else {}
    known.setdefault(_key(made), {"asked": _asked(made), "cases": {}})
    members = {m.folder: {"splits": sha256_of(m.splits)} for m in made.pool.members}
    content = {"job": made.pool.job, "members": members, "versions": versions("nnunetv2", "torch")}
    write_json(path, {**content, "configurations": known})
    description = made.pool.description(made.roots.raw)
    for folder in (raw, preprocessed):
        write_json(folder / "dataset.json", description)
    write_json(preprocessed / FINGERPRINT, made.pool.fingerprint(dict(made.window)))


def _record(made: Draft, records: Mapping[str, Mapping[str, Any]]) -> None:
    raw, preprocessed = made.target.raw, made.target.preprocessed
    cases = {
        case.identifier: {
            "patient": case.member.records[case.case].patient,
            "dataset": case.member.records[case.case].dataset,
            "modality": case.modality,
            "orientation": records[case.identifier]["orientation"],
            "source": case.source,
            "sha256": records[case.identifier]["sha256"],
            "part": "Tr",
        }
        for case in made.pool.cases
    }
    for path in (raw / CASES_FILE.name, preprocessed / CASES_FILE):
        write_json(path, {"cases": cases, "version": 1})
    for folder in (raw, preprocessed):
        write_json(folder / SPLITS_FILE, made.pool.splits)
    content = read_json(raw / CONVERSION_FILE)
    content["configurations"][_key(made)]["cases"] = dict(records)
    write_json(raw / CONVERSION_FILE, content)


def _write_plans(made: Draft, plans: Mapping[str, Any]) -> None:
    """Configurations that an earlier run has made stay."""
    path: Path = made.target.preprocessed / f"{made.request.plans}.json"
    content = copy.deepcopy(dict(plans))
    if path.exists():
        content["configurations"] = {**read_json(path)["configurations"], **plans["configurations"]}
    write_json(path, content)
