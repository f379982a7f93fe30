"""Named rules for what the patterns of a dataset spec cannot say."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import PurePosixPath

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from nnssl.convert.sources import FRAME, Candidate, Files, Inventory, Problem


def acdc_info_cfg(
    candidates: list[Candidate], inventory: Inventory
) -> Iterator[Candidate | Problem]:
    """Keep end-diastole and end-systole; ``Info.cfg`` of the patient has their frame numbers."""
    for name, images in _by_patient(candidates):
        frames = {dict(each.groups)["frame"]: each for each in images}
        try:
            wanted = _frames(inventory, name, images[0].files[0])
        except (ValueError, OSError) as error:
            yield Problem(name, str(error))
            continue
        for phase, frame in wanted.items():
            what = f"frame {frame} ({phase} in Info.cfg) has no image; found {sorted(frames)}"
            yield frames.get(frame, Problem(name, what))


def stacom_ed_es(
    candidates: list[Candidate], inventory: Inventory
) -> Iterator[Candidate | Problem]:
    """Keep end-diastole (the first phase) and end-systole (the smallest cavity in the masks).

    The masks are rings of myocardium; the cavity is what a ring encloses. Patients without any
    mask go to the test set, unless nobody has one.
    """
    labelled = any(each.label for each in candidates)
    for name, images in _by_patient(candidates):
        phases = sorted(images, key=lambda each: int(dict(each.groups)["phase"]))
        drawn = [each for each in phases if each.label]
        if not drawn:
            yield replace(phases[0], part="Ts") if labelled else phases[0]
            continue
        try:
            smallest = np.argmin([_cavity(inventory, each.label or ()) for each in drawn])
        except RuntimeError as error:
            yield Problem(name, f"masks cannot be read ({str(error).splitlines()[-1]})")
            continue
        yield from (phases[0], drawn[int(smallest)])


def ct_series(candidates: list[Candidate], inventory: Inventory) -> Iterator[Candidate | Problem]:
    """Keep series whose first file says that it is CT; radiographs (CR, DX) lie beside them."""
    for each in candidates:
        reader = sitk.ImageFileReader()
        try:
            reader.SetFileName(str(inventory.root / each.files[0]))
            reader.ReadImageInformation()
        except RuntimeError:
            yield each  # its reader says what is wrong
            continue
        key = "0008|0060"
        if not reader.HasMetaDataKey(key) or reader.GetMetaData(key).strip() == "CT":
            yield each


def mnms_csv(candidates: list[Candidate], inventory: Inventory) -> Iterator[Candidate | Problem]:
    """End-diastole and end-systole of each cine; the table of patients has their frame numbers.

    Patients without frames in the table, as those in ``Training/Unlabeled``, have no labels and
    are passed over.
    """
    try:
        table = _read_table(inventory)
    except (ValueError, OSError) as error:
        yield Problem(str(inventory.root), str(error))
        return
    for each in candidates:
        name = dict(each.groups)["patient"]
        if name not in table:
            yield Problem(name, f"has no line in the table of patients (beside {each.files[0]})")
            continue
        ed, es = table[name]
        if ed == es:
            if each.label:
                yield Problem(name, "has a label, but no frames ED and ES in the table of patients")
            continue
        for frame in (ed, es):
            yield replace(each, groups=(*each.groups, (FRAME, f"{frame + 1:02d}")))


FrameRule = Callable[[list[Candidate], Inventory], Iterator[Candidate | Problem]]
FRAME_RULES: dict[str, FrameRule] = {
    "acdc_info_cfg": acdc_info_cfg,
    "stacom_ed_es": stacom_ed_es,
    "ct_series": ct_series,
    "mnms_csv": mnms_csv,
}


def _by_patient(candidates: list[Candidate]) -> Iterator[tuple[str, list[Candidate]]]:
    def patient(candidate: Candidate) -> tuple[str, str]:
        return candidate.part, dict(candidate.groups)["patient"]

    for (_, name), images in groupby(sorted(candidates, key=patient), key=patient):
        yield name, list(images)


def _cavity(inventory: Inventory, masks: Files) -> int:
    """Pixels that the rings of a phase enclose."""
    rings = [sitk.GetArrayFromImage(sitk.ReadImage(str(inventory.root / m))) > 0 for m in masks]
    return sum(int(ndimage.binary_fill_holes(ring).sum() - ring.sum()) for ring in rings)


def _read_table(inventory: Inventory) -> dict[str, tuple[int, int]]:
    """Patient -> frames of end-diastole and end-systole, from 0; 0 and 0 where there are none."""
    needed = ("External code", "ED", "ES")
    for file in inventory.files:
        if file.lower().endswith(".csv"):
            with (inventory.root / file).open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.DictReader(lines))
            if rows and set(needed) <= rows[0].keys():
                break
    else:
        raise ValueError(f"holds no .csv file with the columns {', '.join(needed)}")
    found = {}
    for row in rows:
        name, *frames = (str(row[key] or "").strip() for key in needed)
        try:
            ed, es = (int(float(each or 0)) for each in frames)
        except ValueError as error:
            raise ValueError(
                f"{file} has ED, ES = {frames} for {name}; frames count from 0"
            ) from error
        found[name] = ed, es
    return found


def _frames(inventory: Inventory, patient: str, file: str) -> dict[str, str]:
    info = _info_cfg(inventory, patient, file)
    text = (inventory.root / info).read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE)
    frames = {phase: f"{int(number):02d}" for phase, number in found}
    if set(frames) != {"ED", "ES"}:
        raise ValueError(f"{info} must have the lines 'ED: <frame>' and 'ES: <frame>'")
    return frames


def _info_cfg(inventory: Inventory, patient: str, file: str) -> str:
    for folder in PurePosixPath(file).parents:
        if str(folder / "Info.cfg") in inventory.known:
            return str(folder / "Info.cfg")
        if folder.name == patient:
            break
    raise ValueError(f"Info.cfg is missing beside {file}; it names the frames ED and ES")
