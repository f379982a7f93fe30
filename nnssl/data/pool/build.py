"""A pool from request to files: check everything, write, preprocess case by case, plans last."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.common.checks import plain
from nnssl.common.files import hash_json, read_json, write_json
from nnssl.common.parallel import for_each
from nnssl.common.versions import versions
from nnssl.convert.engine import ConversionTarget
from nnssl.convert.records import CONVERSION_FILE
from nnssl.data.copies import (
    find_copies,
    is_beyond_likeness,
    load_case_thumbnails,
    make_signatures,
    measure_likeness,
)
from nnssl.data.pool.members import FINGERPRINT, DatasetPool, assemble, read_member
from nnssl.data.pool.preprocess import PoolTask, preprocess
from nnssl.data.pool.settings import (
    PLANNER,
    WINDOW,
    CaseSettings,
    SpacingPolicy,
    adapt_plans,
    choose_settings,
    find_ct_statistics,
    find_median_shape,
    make_isotropic,
    make_window,
    plan_mix,
)
from nnssl.nnunet.cases import describe_case, make_cases_file
from nnssl.nnunet.paths import CASES_FILE, DATASET_FILE, SPLITS_FILE, Roots, plans_file
from nnssl.nnunet.plans import read_plans

COPIES = "copies"  # key in conversion.json


@dataclass(frozen=True)
class PoolRequest:
    """What the user asks for."""

    number: int
    name: str
    members: tuple[int, ...]  # ids of the datasets
    plans: str  # name of the plans: those of `plans_of`, or the new ones
    configuration: str
    plans_of: int | None = None  # dataset of architecture and patch; None: planned for the mix
    spacing: SpacingPolicy = "target"
    spacing_of: int | None = None  # dataset whose spacing `target` means; None: that of the plans
    window: tuple[float, float] | None = None  # in HU; None: that of `plans_of`, else WINDOW
    planner: str = PLANNER

    @property
    def key(self) -> str:
        """Of the configuration, among those that the pool has."""
        return f"{self.plans}_{self.configuration}"

    def to_dict(self) -> dict[str, Any]:
        """What decides what the preprocessed files hold."""
        keys = ("plans_of", "spacing", "spacing_of", "window", "planner")
        return {key: plain(getattr(self, key)) for key in keys}


@dataclass(frozen=True)
class PoolDraft:
    """A checked request; nothing is written yet."""

    request: PoolRequest
    roots: Roots
    target: ConversionTarget
    pool: DatasetPool
    source: Mapping[str, Any] | None  # plans of `plans_of`
    window: Mapping[str, float]  # statistics of CT
    spacing: list[float] | None  # planned spacing of `spacing_of`

    def make_plans(self) -> dict[str, Any]:
        """The pool's plans; nnU-Net's planner needs what `_describe` writes."""
        request = self.request
        source = self.source or plan_mix(self.pool, request.plans, request.planner)
        plans = adapt_plans(source, request.configuration, self.pool)
        plans["foreground_intensity_properties_per_channel"] = {"0": dict(self.window)}
        configuration = plans["configurations"][request.configuration]
        spacing = list(self.spacing or configuration["spacing"])
        even = request.spacing == "isotropic"
        configuration["spacing"] = make_isotropic(spacing) if even else spacing
        return plans

    def choose_settings(self, planned: Sequence[float]) -> dict[str, CaseSettings]:
        """Identifier -> settings."""
        policy = self.request.spacing
        return {
            case.identifier: choose_settings(case, policy, planned, self.window)
            for case in self.pool.cases
        }


def read_copies(raw: Path) -> list[tuple[str, str]]:
    """Pairs of cases with the same image, as far as a pool has been preprocessed."""
    path = raw / CONVERSION_FILE
    found = read_json(path).get(COPIES, ()) if path.exists() else ()
    return [(one, other) for one, other in found]


def draft(request: PoolRequest, roots: Roots) -> PoolDraft:
    """Read all members and check that they fit together, else ValueError; nothing is written."""
    target = ConversionTarget.of(roots.raw, roots.preprocessed, request.number, request.name)
    members = [read_member(roots, number) for number in request.members]
    pool = assemble(target.raw.name, members, read_copies(target.raw))
    window = make_window(*(request.window or WINDOW))
    source = spacing = None
    if request.plans_of is not None:
        source = _read_plans(roots, request.plans_of, request)
        adapt_plans(source, request.configuration, pool)
        if request.window is None:
            window = find_ct_statistics(source) or window
    if request.spacing_of is not None:
        configurations = _read_plans(roots, request.spacing_of, request)["configurations"]
        spacing = configurations[request.configuration]["spacing"]
    made = PoolDraft(request, roots, target, pool, source, window, spacing)
    _refuse_another(made)
    return made


def build(made: PoolDraft, workers: int) -> tuple[dict[str, Any], DatasetPool]:
    """Write the pool; what an earlier run has finished stays. The plans come last.

    Returns:
        The plans, and the pool as it is once images have been compared.
    """
    _describe(made)
    plans = made.make_plans()
    name = made.request.configuration
    configuration = plans["configurations"][name]
    settings = made.choose_settings(configuration["spacing"])
    folder = made.target.preprocessed / configuration["data_identifier"]
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [PoolTask.of(case, settings[case.identifier], folder) for case in made.pool.cases]
    missing = [task for task in tasks if not task.is_done()]
    for_each(partial(preprocess, plans=plans, configuration=name), missing, workers, "preprocess")
    by_member = {case.member.folder: settings[case.identifier] for case in made.pool.cases}
    configuration["median_image_size_in_voxels"] = find_median_shape(made.pool, by_member)
    made = replace(made, pool=_join_copies(made, folder, workers))
    _write_records(made, {task.identifier: read_json(task.record_file) for task in tasks})
    _write_plans(made, plans)
    return plans, made.pool


def _join_copies(made: PoolDraft, folder: Path, workers: int) -> DatasetPool:
    """The pool, in which cases of two members that have the same image are one person's."""
    pool, cases = made.pool, [case.identifier for case in made.pool.cases]
    home = {case.identifier: case.member.folder for case in pool.cases}
    thumbnails = load_case_thumbnails(folder, cases, workers)
    likeness = np.zeros(len(cases))
    for member in pool.members:
        own = [k for k, case in enumerate(cases) if home[case] == member.folder]
        patients = [pool.cases[k].record.key for k in own]
        likeness[own] = measure_likeness(thumbnails[own], patients)
    found = find_copies(thumbnails, make_signatures(thumbnails), flips=True)
    pairs = [
        (cases[each.query], cases[each.candidate])
        for each in found
        if is_beyond_likeness(each.correlation, min(likeness[[each.query, each.candidate]]))
    ]
    copies = {(a, b) for a, b in pairs if home[a] < home[b]}
    return assemble(pool.folder, pool.members, sorted(copies | {*pool.copies}))


def _read_plans(roots: Roots, number: int, request: PoolRequest) -> dict[str, Any]:
    file = plans_file(number, request.plans, roots.preprocessed)
    return read_plans(file, request.configuration)


def _refuse_another(made: PoolDraft) -> None:
    """Raises ValueError where the folder holds another pool, or none."""
    target, request = made.target, made.request
    if not target.raw.exists():
        if (target.preprocessed / DATASET_FILE).exists():
            raise ValueError(
                f"{target.preprocessed} exists already, and no {target.raw} that says what it was "
                "made from; delete it, or choose another id"
            )
        return
    path = target.raw / CONVERSION_FILE
    found = read_json(path) if path.exists() else {}
    if found.get("job") != made.pool.job:
        raise ValueError(
            f"{target.raw} exists already and was made from other members, images or folds; delete "
            f"it and {target.preprocessed}, or choose another id"
        )
    asked = request.to_dict()
    known = found["configurations"].get(request.key, {}).get("asked", asked)
    if known != asked:
        raise ValueError(
            f"{request.key} of {target.preprocessed} was made with other settings ({known}; now "
            f"{asked}); delete the pool, or choose another id"
        )


def _describe(made: PoolDraft) -> None:
    """What says which pool this is, and what nnU-Net's planner reads."""
    raw, preprocessed = made.target.raw, made.target.preprocessed
    path = raw / CONVERSION_FILE
    known = read_json(path)["configurations"] if path.exists() else {}
    known.setdefault(made.request.key, {"asked": made.request.to_dict(), "cases": {}})
    members = {m.folder: {"splits": hash_json(m.splits)} for m in made.pool.members}
    content = {"job": made.pool.job, "members": members, "versions": versions("nnunetv2", "torch")}
    write_json(path, {**content, COPIES: made.pool.copies, "configurations": known})
    description = made.pool.description(made.roots.raw)
    for folder in (raw, preprocessed):
        write_json(folder / DATASET_FILE, description)
    write_json(preprocessed / FINGERPRINT, made.pool.fingerprint(dict(made.window)))


def _write_records(made: PoolDraft, records: Mapping[str, Mapping[str, Any]]) -> None:
    raw, preprocessed = made.target.raw, made.target.preprocessed
    cases = {}
    for case in made.pool.cases:
        origin, found = case.record, records[case.identifier]
        entry = describe_case(
            origin.patient,
            origin.dataset,
            case.modality,
            found["orientation"],
            case.source,
            found["sha256"],
        )
        cases[case.identifier] = {**entry, "part": "Tr"}
    for path in (raw / CASES_FILE.name, preprocessed / CASES_FILE):
        write_json(path, make_cases_file(cases))
    for folder in (raw, preprocessed):
        write_json(folder / SPLITS_FILE, made.pool.splits)
    content = read_json(raw / CONVERSION_FILE)
    content["configurations"][made.request.key]["cases"] = dict(records)
    content[COPIES] = made.pool.copies
    write_json(raw / CONVERSION_FILE, content)


def _write_plans(made: PoolDraft, plans: Mapping[str, Any]) -> None:
    """Configurations that an earlier run has made stay."""
    path = made.target.preprocessed / f"{made.request.plans}.json"
    content = copy.deepcopy(dict(plans))
    if path.exists():
        content["configurations"] = {
            **read_plans(path)["configurations"],
            **plans["configurations"],
        }
    write_json(path, content)
