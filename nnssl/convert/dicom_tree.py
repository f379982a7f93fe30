"""DICOM trees: one look at every header, series by what they say, labels by what they refer to."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.common.parallel import for_each
from nnssl.convert import dicom_volumes
from nnssl.convert.dicom_volumes import Marks, part_volumes, read_marks
from nnssl.convert.readers.dicom_objects import (
    is_label,
    list_structures,
    name_plane,
    read_planes,
    require,
)
from nnssl.convert.sources import Candidate, Files, Inventory, Problem
from nnssl.convert.volumes import hash_files, last_line
from nnssl.nnunet.paths import PATIENT_KEY

AT_ONCE = 64  # headers that a process reads before it takes the next ones
GROUPS = ("patient", "study", "series")
NO_DICOM, STUMP = "no DICOM", "too short for DICOM"
DICOMDIR, DEFLATED = "1.2.840.10008.1.3.10", "1.2.840.10008.1.2.1.99"
IMAGE, LABEL, PROBLEM = "image", "label", "problem"
READ = (  # of a header: no contours, no pixels
    "SOPClassUID SOPInstanceUID PatientID StudyInstanceUID SeriesInstanceUID Modality "
    "SeriesDescription ProtocolName StructureSetLabel ContentLabel ImageType Rows "
    "ImagePositionPatient ImageOrientationPatient PixelSpacing ReferencedSeriesSequence "
    "ReferencedFrameOfReferenceSequence SegmentSequence StructureSetROISequence "
    "SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)


@dataclass(frozen=True)
class Header:
    """What one file says of itself.

    Attributes:
        path: The file, relative to the source folder.
        kind: ``image``, ``label`` (SEG, RTSTRUCT), ``problem``, or what it is that is passed over.
        about: What series are chosen by: ``MR t1_tse_tra transversal``; or what is wrong.
        refers: Series that a label belongs to.
        slices: Slices (SOPInstanceUID) that a label was drawn on, where it says so.
        structures: Names of what a label outlines.
        marks: What an image says of the volume that it belongs to.
        fault: Why an image cannot be converted.
    """

    path: str
    kind: str
    about: str = ""
    instance: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    refers: tuple[str, ...] = ()
    slices: frozenset[str] = frozenset()
    structures: tuple[str, ...] = ()
    marks: Marks | None = None
    fault: str = ""


@dataclass
class Tree:
    """The headers of a source folder, sorted by path."""

    headers: list[Header]

    @cached_property
    def images(self) -> dict[str, list[Header]]:
        """Series -> its slices; each volume of a series of several is a series `UID NAME`."""
        found: dict[str, list[Header]] = defaultdict(list)
        for each in self.headers:
            if each.kind == IMAGE:
                found[each.series].append(each)
        return {key: files for series in found.values() for key, files in _part(series)}

    @cached_property
    def volumes(self) -> dict[str, list[str]]:
        """SeriesInstanceUID -> its keys in `images`, more than one where it was parted."""
        found: dict[str, list[str]] = defaultdict(list)
        for key in self.images:
            found[key.partition(" ")[0]].append(key)
        return dict(found)

    @property
    def labels(self) -> list[Header]:
        """All SEG and RTSTRUCT objects."""
        return [each for each in self.headers if each.kind == LABEL]

    def describe_series(self) -> str:
        """What there is to choose from: descriptions, each with its number of series."""
        abouts = [files[0].about for files in self.images.values()]
        abouts += [each.about for each in self.labels]
        return count_lines(abouts)


@dataclass
class Found:
    """Possible cases, what is wrong, and what was passed over."""

    candidates: list[Candidate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def read_tree(source: Path, workers: int) -> Tree:
    """Read the header of every file below a folder, once, in several processes.

    Raises:
        ValueError: It is no folder, or the libraries for DICOM are missing.
    """
    require("pydicom")
    if not source.is_dir():
        raise ValueError(f"{source} is not a folder")
    files = Inventory.of(source).files
    parts = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
    read = for_each(partial(_read_headers, source=source), parts, workers, f"{AT_ONCE} headers")
    return Tree([header for part in read for header in part])


def read_patient_key(raw: Path) -> bytes:
    """The secret of ``nnUNet_raw``, which is made when it is asked for the first time.

    With it, one PatientID gives one name in all datasets of the folder, and nobody without it can
    find a PatientID by trying.
    """
    path = raw / PATIENT_KEY
    if not path.exists():
        raw.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secrets.token_hex())
    key = path.read_bytes()
    if len(key) != 64:
        raise ValueError(f"{path} is damaged; put it back from a copy, or delete it for new names")
    return key


def find_series(
    tree: Tree,
    source: Path,
    channels: Mapping[str, str],
    label: str | None = None,
    test: str | None = None,
    key: bytes | None = None,
) -> Found:
    """Bring the series of a study and their labels together.

    With one channel, every matching series is a possible case; with several, every study, each
    channel of which one series matches. Where some series of a study have labels, those without
    are passed over.

    Args:
        tree, source: The headers, and the folder that they are relative to.
        channels: Channel -> regular expression that is searched in ``Header.about``.
        label: The same for SEG and RTSTRUCT objects; ``None``: no labels.
        test: Regular expression of paths that belong to the test set.
        key: Secret of the names that patients get; ``None``: PatientIDs stay as they are.
    """
    found = Found()
    chosen: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for series, files in tree.images.items():
        first = files[0]
        for channel in find_matching(channels, first.about):
            place = (first.patient, first.study, series)[: 3 if len(channels) == 1 else 2]
            chosen[place][channel].append(series)
    in_use = {
        each for by_channel in chosen.values() for many in by_channel.values() for each in many
    }
    labels = _find_labels(tree, label, in_use, found)
    if parts := [each for each in in_use if " " in each]:
        whole = len({each.partition(" ")[0] for each in parts})
        found.remarks.append(
            f"{len(parts)} volumes are parts of {whole} series: "
            + ", ".join(sorted({each.partition(" ")[2] for each in parts}))
        )
    for place, by_channel in sorted(chosen.items()):
        for channel, many in by_channel.items():
            if len(many) > 1:
                abouts = sorted(f"'{tree.images[each][0].about}'" for each in many)
                what = (
                    f"{len(many)} series of one study match channel {channel}: {', '.join(abouts)}"
                )
                near = tree.images[many[0]][0].path
                found.problems.append(Problem(near, f"{what}; choose more narrowly"))
        firsts = [by_channel[each][0] if by_channel[each] else None for each in channels]
        images = tuple(_files(tree, each, source, found) if each else None for each in firsts)
        path = next(files[0] for files in images if files)
        part = "Ts" if test and re.search(test, f"{source.resolve().name}/{path}") else "Tr"
        own = sorted({path for each in firsts for path in labels.get(each or "", ())})
        groups = tuple(zip(GROUPS, _names(place, key), strict=False))
        found.candidates.append(Candidate(part, groups, images, tuple(own) or None))
    if nameless := len({place[1] for place in chosen if place[0] == place[1]}):
        found.remarks.append(f"{nameless} studies have no PatientID; each counts as a patient")
    if label:
        _pass_over_unlabelled(found)
    _list_the_rest(tree, in_use, found)
    return found


def find_matching(choices: Mapping[str, str], about: str) -> list[str]:
    """Names of the regular expressions that are found in a text, in capitals or not."""
    return [name for name, pattern in choices.items() if re.search(pattern, about, re.IGNORECASE)]


def _find_labels(
    tree: Tree, label: str | None, series: set[str], found: Found
) -> dict[str, list[str]]:
    """Series -> its labels."""
    labels: dict[str, list[str]] = defaultdict(list)
    elsewhere = 0
    for each in tree.labels:
        if label is None or not re.search(label, each.about, re.IGNORECASE):
            continue
        if not each.refers:
            found.problems.append(Problem(each.path, f"({each.about}) refers to no series"))
        owners = _find_owners(tree, each, found)
        for one in series & owners:
            labels[one].append(each.path)
        elsewhere += bool(each.refers) and series.isdisjoint(owners)
    if elsewhere:
        found.remarks.append(f"{elsewhere} labels passed over: their series are not chosen")
    return labels


def _find_owners(tree: Tree, label: Header, found: Found) -> set[str]:
    """The series that a label belongs to; of one of several volumes, those it was drawn on."""
    owners: set[str] = set()
    for uid in label.refers:
        volumes = tree.volumes.get(uid, [])
        drawn = [k for k in volumes if any(f.instance in label.slices for f in tree.images[k])]
        if len(volumes) > 1 and not drawn:
            what = f"({label.about}) refers to a series of {len(volumes)} volumes"
            found.problems.append(Problem(label.path, f"{what}, and not to the slices of one"))
        owners |= {*(drawn if len(volumes) > 1 else volumes)}
    return owners


def _part(series: list[Header]) -> Iterator[tuple[str, list[Header]]]:
    """The volumes of a series; copies of a slice stay with it."""
    uid, first = series[0].series, {each.instance: each for each in reversed(series)}
    marks = [each.marks for each in first.values()]
    fault = next((each.fault for each in series if each.fault), "")
    try:
        volumes = {} if fault else part_volumes([each for each in marks if each])
    except ValueError as error:
        fault, volumes = str(error), {}
    if fault:
        yield uid, [replace(each, fault=fault) for each in series]
    instances = [*first]
    for name, numbers in volumes.items():
        members = {instances[k] for k in numbers}
        files = [each for each in series if each.instance in members]
        about = f" {name}" if name else ""
        yield uid + about, [replace(each, about=each.about + about) for each in files]


def _files(tree: Tree, series: str, source: Path, found: Found) -> Files:
    """The slices of a series; a second copy of one must be the same file."""
    first: dict[str, str] = {}
    if fault := tree.images[series][0].fault:
        found.problems.append(Problem(tree.images[series][0].path, fault))
    copies = 0
    if (owners := len({each.patient for each in tree.images[series]})) > 1:
        what = f"has a series of {owners} patients (SeriesInstanceUID)"
        found.problems.append(Problem(tree.images[series][0].path, what))
    for each in tree.images[series]:
        one = first.setdefault(each.instance, each.path)
        if one == each.path:
            continue
        copies += 1
        if hash_files([source / one]) != hash_files([source / each.path]):
            what = f"and {one} say that they are the same slice, but they differ"
            found.problems.append(Problem(each.path, what))
    if copies:
        found.remarks.append(f"{copies} files passed over: copies of slices that are there already")
    return tuple(first.values())


def _pass_over_unlabelled(found: Found) -> None:
    def study(candidate: Candidate) -> Any:
        return candidate.groups[:2]

    labelled = {study(each) for each in found.candidates if each.label}
    kept = [each for each in found.candidates if each.label or study(each) not in labelled]
    if passed := len(found.candidates) - len(kept):
        what = "without label, in studies that hold a labelled one"
        found.remarks.append(f"{passed} series passed over: {what}")
    found.candidates = kept


def _list_the_rest(tree: Tree, in_use: set[str], found: Found) -> None:
    """Broken files, parts of chosen series that are no slices, and a count of everything else."""
    rest = []
    slices = (each.path for series in in_use for each in tree.images[series])
    folders = {path.rpartition("/")[0] for path in slices}
    used = {each.partition(" ")[0] for each in in_use}
    for each in tree.headers:
        if each.kind == PROBLEM:
            found.problems.append(Problem(each.path, each.about))
        elif each.kind not in (IMAGE, LABEL):
            rest.append(NO_DICOM if each.kind == STUMP else each.kind)
            stump = each.kind == STUMP and each.path.rpartition("/")[0] in folders
            if stump or each.series in used:
                what = f"is among the files of a chosen series and is no slice ({each.kind})"
                found.problems.append(Problem(each.path, what))
    found.remarks += [f"{n} files passed over: {kind}" for kind, n in Counter(rest).most_common()]
    if unused := len(tree.images) - len(in_use):
        found.remarks.append(f"{unused} series passed over: not chosen")


def _names(place: Sequence[str], key: bytes | None) -> list[str]:
    """Names of patient, study and series; without a key the PatientID stays as it is."""

    def digest(uid: str, length: int) -> str:
        return hmac.new(key or b"", uid.encode(), hashlib.sha256).hexdigest()[:length]

    patient = place[0] if key is None else f"p{digest(place[0], 12)}"
    parts = [each.partition(" ") for each in place[1:]]
    return [patient, *(digest(uid, 6) + volume for uid, _, volume in parts)]


def _read_headers(paths: Iterable[str], source: Path) -> list[Header]:
    return [_read_header(path, source) for path in paths]


def _read_header(path: str, source: Path) -> Header:
    """Whatever is wrong with a file comes back as a header of the kind ``problem``."""
    import pydicom

    try:
        with (source / path).open("rb") as file:
            head = file.read(132)
            if head[128:] != b"DICM" and not path.lower().endswith(".dcm"):
                return Header(path, NO_DICOM if len(head) == 132 else STUMP)
            file.seek(0)
            tags: list[Any] = [*READ.split(), *dicom_volumes.TAGS]
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
            ends = not file.read(1) and dataset.file_meta.TransferSyntaxUID != DEFLATED
        header = _describe(path, dataset)
        cut = ends and header.kind != PROBLEM and "Image" in dataset.SOPClassUID.name
        return replace(header, kind=PROBLEM, about="ends before its pixels") if cut else header
    except Exception as error:  # damaged headers raise anything
        return Header(path, PROBLEM, f"cannot be read ({type(error).__name__}: {last_line(error)})")


def _describe(path: str, dataset: Any) -> Header:
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
        return Header(path, "DICOMDIR")
    study, series = (str(dataset.get(f"{each}InstanceUID", "")) for each in ("Study", "Series"))
    if not ("SOPClassUID" in dataset and study and series):
        return Header(path, PROBLEM, "is cut off or no DICOM (class, study or series is missing)")
    words = [dataset.get("Modality"), dataset.get("SeriesDescription"), dataset.get("ProtocolName")]
    words += [dataset.get("StructureSetLabel"), dataset.get("ContentLabel")]
    kind, plane, fault = dataset.SOPClassUID.name, "", ""
    refers: tuple[str, ...] = ()
    slices: frozenset[str] = frozenset()
    structures: tuple[str, ...] = ()
    marks = None
    if is_label(dataset):
        kind, structures = LABEL, tuple(list_structures(dataset))
        refers, slices = _references(dataset)
    elif "LOCALIZER" in (dataset.get("ImageType") or ()):
        kind = "localizers"
    elif planes := read_planes(dataset):
        kind, plane = IMAGE, name_plane(planes[0].axes)
        places = [(*each.position, *each.axes.ravel()) for each in planes]
        marks = read_marks(dataset, places[0])
        if (number := len({tuple(np.round(each, 2) + 0.0) for each in places})) < len(places):
            fault = (
                f"is a multi-frame image of {len(places)} frames at {number} places, thus of "
                "several volumes; convert it by dcm2niix and give its NIfTI files"
            )
    elif "Rows" in dataset:
        kind = f"{kind} without a place in the patient"
    text = " ".join(dict.fromkeys(str(word).strip() for word in [*words, plane] if word))
    return Header(
        path,
        kind,
        text,
        str(dataset.get("SOPInstanceUID", path)),
        str(dataset.get("PatientID") or "").strip() or study,
        study,
        series,
        refers,
        slices,
        structures,
        marks,
        fault,
    )


def _references(dataset: Any) -> tuple[tuple[str, ...], frozenset[str]]:
    """Series that a label was drawn on, and those of their slices that it names."""
    series = list(dataset.get("ReferencedSeriesSequence") or ())
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            series += study.get("RTReferencedSeriesSequence") or ()
    named = frozenset(
        str(each.ReferencedSOPInstanceUID)
        for one in series
        for key in ("ReferencedInstanceSequence", "ContourImageSequence")
        for each in one.get(key) or ()
    )
    return tuple(dict.fromkeys(str(each.SeriesInstanceUID) for each in series)), named


def count_lines(texts: Iterable[str]) -> str:
    """Each text once, with how often it is there."""
    return "\n".join(f"{count:7d}  {text}" for text, count in sorted(Counter(texts).items()))
