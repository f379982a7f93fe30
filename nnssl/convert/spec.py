"""A dataset as data: the closed vocabulary of `nnssl_configs/datasets/*.yaml`."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from nnssl.common.checks import Rule, Whole, check_values, checked, one_of
from nnssl.common.files import read_json
from nnssl.config.files import INSTALLED, read_yaml
from nnssl.convert.dicom_tree import GROUPS
from nnssl.convert.labels import FOREGROUND_RULES, LABELS, check_remap, choose_foreground_rule
from nnssl.convert.rules import FRAME_RULES
from nnssl.convert.sources import FRAME, SLICE
from nnssl.convert.volumes import FourthAxis, Frames, Headers, Overlap, Reading, Slices

Derivation = Callable[[Path, str], dict[str, Any]]


def decathlon_dataset_json(source: Path, pattern: str) -> dict[str, Any]:
    """Name, channels and labels of a Medical Decathlon task, from its ``dataset.json``.

    Args:
        source: ``TaskNN_Name``.
        pattern: Pattern of the images; a file holds all channels.

    Raises:
        ValueError: The file is missing or incomplete, or lists files that are not there.
    """
    found, content = _read_task(source)
    listed = [file for entry in content["training"] for file in entry.values()]
    if missing := [file for file in listed if not (source / file).exists()]:
        path = source / "dataset.json"
        raise ValueError(f"{path} lists {len(missing)} files that are missing: {missing[:5]}")
    channels = dict.fromkeys(found["channels"], pattern)
    return {**found, "channels": channels, "fourth_axis": "channels" if len(channels) > 1 else None}


def _read_task(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name, description, channels and labels of a task, and all of its ``dataset.json``."""
    path = source / "dataset.json"
    if not path.exists():
        raise ValueError(f"{path} is missing; SOURCE must be the folder TaskNN_Name of one task")
    content = read_json(path)
    try:
        channels = [content["modality"][key] for key in sorted(content["modality"], key=int)]
        labels = {name: int(value) for value, name in content["labels"].items()}
        if not all(isinstance(entry, dict) for entry in content["training"]):
            raise TypeError("an entry of training is no mapping")
        if len(set(channels)) < len(channels):
            raise ValueError(f"two channels have one name, {channels}; name them apart")
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{path} must have modality, labels and training ({error!r})") from error
    labels = {"background" if value == 0 else name: value for name, value in labels.items()}
    task, _, name = source.resolve().name.partition("_")
    found = {
        "name": name if task.startswith("Task") and name else str(content.get("name")),
        "description": str(content.get("description", "Medical Segmentation Decathlon")),
        "modality": "/".join(channels),
        "channels": channels,
        "labels": dict(sorted(labels.items(), key=lambda entry: entry[1])),
    }
    return found, content


def nnunet_v1_dataset_json(source: Path, pattern: str) -> dict[str, Any]:
    """Channels, a file each, and labels of a task of nnU-Net's first version.

    Args:
        source: ``TaskNNN_Name``, whose ``dataset.json`` lists cases, not the files of channels.
        pattern: Pattern of the images, which ends in the channel ``_0000``.

    Raises:
        ValueError: The file is missing or incomplete.
    """
    found = _read_task(source)[0]
    files = [pattern.replace("_0000", f"_{k:04d}") for k in range(len(found["channels"]))]
    channels = dict(zip(found["channels"], files, strict=True))
    return {**found, "channels": channels, "fourth_axis": None}


def names_of_masks(source: Path, pattern: str) -> dict[str, Any]:
    """Structures of a dataset with a file for each, from the first subject's ``segmentations``.

    Raises:
        ValueError: There is no such folder.
    """
    folders = sorted(source.glob("**/segmentations"))
    files = sorted(folders[0].glob("*.nii.gz")) if folders else []
    names = [file.name.removesuffix(".nii.gz") for file in files if file.name[0] != "."]
    if not names:
        raise ValueError(f"{source} holds no folder segmentations with a file for each structure")
    subject = pattern.partition("/")[0]
    return {
        "masks": {each: rf"{subject}/segmentations/{re.escape(each)}\.nii\.gz" for each in names},
        "labels": {name: value for value, name in enumerate(["background", *names])},
    }


DERIVATIONS: dict[str, Derivation] = {
    "decathlon_dataset_json": decathlon_dataset_json,
    "nnunet_v1_dataset_json": nnunet_v1_dataset_json,
    "names_of_masks": names_of_masks,
}


PLAIN = Rule(
    lambda name: bool(re.fullmatch(r"[A-Za-z0-9_-]+", name)), "letters, digits, '-' and '_'"
)


@checked
@dataclass(frozen=True)
class DatasetSpec:
    """What the engine must know about one public dataset.

    Patterns are regular expressions; a file belongs to one when the end of its path below the
    source folder matches, starting at a path component. A pattern that ends in ``/`` matches
    folders: the files in one are a DICOM series, or pictures of its slices. Named groups identify
    the image; files that differ in the group ``slice`` only are slices of one volume.

    Args:
        name: Name of the dataset; the nnU-Net folder is ``Dataset<id>_<name>``.
        description: One line for ``--list``.
        modality: Modality written into ``cases.json``.
        channels: Channel name (nnU-Net derives the normalisation from it) -> pattern of its files.
            Several channels with one pattern lie in one file (``fourth_axis``, or colours).
        case: Template of the case identifier, made of named groups.
        patient: Template of the patient: cases of one patient are never parted by a fold.
        citation: What users must cite.
        licence: Licence of the data.
        where: Where to get the data.
        layout: What the source folder must look like.
        label: Pattern of the label files. Groups of the channel patterns that it lacks mean that
            a label belongs to several images. Without it the dataset has images only, and a
            mask named ``foreground`` is made.
        masks: Label name -> pattern of its mask (all but 0 belongs to it), in place of ``label``,
            where each structure has a file of its own; ``overlap`` says what voxels of two become.
        labels: Label name -> value, or list of values (a region); ``background`` is 0, values are
            consecutive.
        regions_class_order: Order in which nnU-Net writes regions, where there are any.
        remap: Value in the files, range (``56-70``) or ``other`` -> value in ``labels``.
        test: Regular expression; where it is found in a path, the file belongs to the test set.
        folder: Pattern of a patient's folder; one without images is an error.
        frames: Name of a registered rule that chooses among the images found.
        unlabelled: Pattern of files with a fourth axis of time frames, most of them without
            labels. The number of a frame (``01``, ``02``, ...) fills ``{frame}`` of ``case``;
            frames that are cases already are left out.
        fourth_axis: What a fourth axis is: ``channels``; ``first`` (first time frame is taken); or
            ``frames`` (the rule of ``frames`` says which, by the group ``frame``, from 01).
        headers: ``exact``, or ``repair`` (skewed axes, labels on other axes or without header).
        dicom: Whether ``channels`` and ``label`` are regular expressions of what DICOM series say
            of themselves (``MR t1_tse_tra transversal``) instead of paths; ``case`` and
            ``patient`` are then made of ``patient``, ``study`` and ``series``.
        structures: Regular expression of a structure's whole name in DICOM SEG and RTSTRUCT ->
            value in ``labels``; structures that match none are passed over.
        overlap: ``refuse`` structures that share voxels, or give these to the ``last`` label.
        datalist: File of MONAI's kind that names images and labels in place of patterns.
        slices: ``refuse`` or ``resample`` DICOM series with gantry tilt or uneven distances.
        nan: What values that are not finite become; without it they are refused.
        foreground: Rule of the mask for images only: ``otsu`` or ``hounsfield`` (default for CT).
        derive: Name of a registered function that completes the spec from the source folder.
        folds: Number of folds.
        seed: Seed of the folds.
    """

    name: Annotated[str, PLAIN]
    description: str
    modality: str
    channels: Annotated[dict[str, str], MinLen(1)]
    case: str
    patient: str
    citation: str
    licence: str
    where: str
    layout: str
    label: str | None = None
    masks: dict[str, str] | None = None
    labels: Annotated[dict[str, Any], MinLen(1)] = field(default_factory=lambda: dict(LABELS))
    regions_class_order: list[int] | None = None
    remap: dict[Any, int] | None = None
    test: str | None = None
    folder: str | None = None
    frames: Annotated[str, one_of(FRAME_RULES)] | None = None
    unlabelled: str | None = None
    fourth_axis: FourthAxis | Frames | None = None
    headers: Headers = "exact"
    slices: Slices = "refuse"
    dicom: bool = False
    structures: dict[str, int] | None = None
    overlap: Overlap = "refuse"
    datalist: str | None = None
    nan: float | None = None
    foreground: Annotated[str, one_of(FOREGROUND_RULES)] | None = None
    derive: Annotated[str, one_of(DERIVATIONS)] | None = None
    folds: Annotated[int, Ge(2)] = 5
    seed: Whole = 1234

    @property
    def reading(self) -> Reading:
        """The readers' knobs."""
        return Reading(
            self.fourth_axis,
            self.headers,
            self.slices,
            len(self.channels),
            self.structures or {},
            self.overlap,
            self.nan,
        )

    @property
    def values(self) -> set[int]:
        """All values of labels and regions."""
        lists = [value if isinstance(value, list) else [value] for value in self.labels.values()]
        return {value for each in lists for value in each}

    @property
    def foreground_rule(self) -> str:
        """The rule of the mask for images without labels."""
        return self.foreground or choose_foreground_rule(next(iter(self.channels)))

    @property
    def guidance(self) -> str:
        """Where to get the data and what its folder must look like."""
        return f"Get {self.name} from {self.where}\nThe folder must look like this:\n{self.layout}"

    def without_labels(self) -> DatasetSpec:
        """The same images, with a foreground mask in place of the labels."""
        labels: dict[str, Any] = dict.fromkeys(
            ("label", "masks", "remap", "structures", "regions_class_order")
        )
        return replace(self, labels=dict(LABELS), **labels)

    def derive_from(self, source: Path) -> DatasetSpec:
        """With what the source folder itself says, where the spec derives from it.

        Raises:
            ValueError: The source folder does not say it, or says something impossible.
        """
        if self.derive is None:
            return self
        try:
            changes = DERIVATIONS[self.derive](source, next(iter(self.channels.values())))
        except ValueError as error:
            raise ValueError(f"{error}\n{self.guidance}") from error
        return replace(self, **changes)

    def __post_init__(self) -> None:
        """Refuses entries that do not fit each other; names what was found and is allowed."""
        _check_labels(self)
        _check_patterns(self)


NEEDED = {each.name for each in fields(DatasetSpec) if each.default is MISSING} - {"labels"}


def find_specs(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Names and files of all dataset specs: the user's folders (the first wins), then ours."""
    found: dict[str, Path] = {}
    for folder in [*folders, INSTALLED]:
        for path in sorted((folder / "datasets").glob("*.yaml")):
            text = path.read_text(encoding="utf-8", errors="replace")
            entries = set(re.findall(r"^(\w+):", text, re.MULTILINE))
            if not entries or entries & NEEDED:
                found.setdefault(path.stem, path)  # other tables may lie beside the specs
    return found


def read_spec(path: Path) -> DatasetSpec:
    """Read and check one spec.

    Raises:
        ValueError: Unknown, missing or impossible entries; the message names file and entry.
    """
    raw = read_yaml(path)
    if wrong := check_values(DatasetSpec, raw)[1]:
        found = {name: f" = {raw[name]!r}" if name in raw else "" for name in wrong}
        problems = [f"{name}{found[name]}: {text}" for name, text in wrong.items()]
        raise ValueError(f"{path}: {'; '.join(problems)}")
    try:
        return DatasetSpec(**raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_labels(spec: DatasetSpec) -> None:
    values = sorted(spec.values)
    if spec.labels.get("background") != 0 or values != list(range(len(values))):
        raise ValueError(f"labels is {spec.labels}; need background 0 and consecutive integers")
    regions = any(isinstance(value, list) for value in spec.labels.values())
    if not regions and len(spec.labels) != len(values):
        raise ValueError(f"labels is {spec.labels}; two names have one value")
    if regions != (spec.regions_class_order is not None):
        raise ValueError("labels with lists (regions) need regions_class_order, others have none")
    if spec.remap is not None:
        check_remap(spec.remap, spec.values)
    if spec.masks is not None and (
        spec.label or set(spec.masks) != set(spec.labels) - {"background"}
    ):
        raise ValueError(
            f"masks is of {sorted(spec.masks)}; it must have all names of labels but background, "
            "and there is no label beside it"
        )
    for pattern, value in (spec.structures or {}).items():
        _find_named_groups("structures", pattern)
        if value not in spec.values:
            allowed = sorted(spec.values)
            raise ValueError(f"structures has {pattern!r}: {value!r}; allowed values: {allowed}")


def _check_patterns(spec: DatasetSpec) -> None:
    groups = {
        name: _find_named_groups(f"channels.{name}", pattern) - {SLICE}
        for name, pattern in spec.channels.items()
    }
    if spec.dicom:
        groups = {channel: set(GROUPS) for channel in groups}
    allowed = set(next(iter(groups.values())))
    masks = {f"masks.{name}": pattern for name, pattern in (spec.masks or {}).items()}
    labels = {
        name: _find_named_groups(name, pattern) - {SLICE}
        for name, pattern in (masks or {"label": spec.label or ""}).items()
    }
    wrong = set().union(*labels.values()) - allowed or len({*map(frozenset, labels.values())}) > 1
    if wrong or any(each != allowed for each in groups.values()):
        found = {**{f"channels.{name}": each for name, each in groups.items()}, **labels}
        raise ValueError(f"patterns must have the same named groups; found {found}")
    for entry in ("test", "folder"):
        _find_named_groups(entry, getattr(spec, entry))
    allowed |= {FRAME} if spec.fourth_axis == "frames" and spec.frames else set()
    for entry in ("case", "patient"):
        used = _fields(getattr(spec, entry))
        if not used or used - allowed:
            raise ValueError(
                f"{entry} is {getattr(spec, entry)!r}; it must use the named groups {allowed}"
            )
    if spec.unlabelled is not None:
        _check_unlabelled(spec, spec.unlabelled)


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field}


def _check_unlabelled(spec: DatasetSpec, pattern: str) -> None:
    """Frames have one channel, and the pattern and the frame's number make their identifier."""
    groups = _find_named_groups("unlabelled", pattern)
    needed = (_fields(spec.case) | _fields(spec.patient)) - {FRAME}
    if FRAME not in _fields(spec.case) or groups != needed or len(spec.channels) > 1:
        raise ValueError(
            f"unlabelled is {pattern!r}; it needs the named groups {needed}, {{{FRAME}}} in case, "
            "and a dataset of one channel"
        )


def _find_named_groups(entry: str, pattern: str | None) -> set[str]:
    """Named groups of a pattern; a ``ValueError`` names the entry when it does not compile."""
    try:
        return set(re.compile(pattern or "").groupindex)
    except re.error as error:
        raise ValueError(f"{entry} is {pattern!r}, no regular expression: {error}") from error
