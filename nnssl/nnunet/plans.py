"""Plans: read, changed as a copy, and written without touching others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from typing_extensions import NotRequired, TypedDict

from nnssl.common.checks import Count, Name, Positive, Whole, suggest
from nnssl.common.content import check_content
from nnssl.common.files import read_json, write_json
from nnssl.nnunet.paths import DATASET_FILE, check_name

UNETS = "dynamic_network_architectures.architectures"
PLAIN, RESIDUAL = f"{UNETS}.unet.PlainConvUNet", f"{UNETS}.unet.ResidualEncoderUNet"
RESNET = "nnssl.modules.resnet_unet.ResNetUNet"
SPACING, PATCH, BATCH, NORMALISATION = "spacing", "patch", "batch", "normalisation"
KEEPABLE = (SPACING, PATCH, BATCH, NORMALISATION)  # of a checkpoint, by plans that are made for it
NOT_PLANS = ("dataset", "dataset_fingerprint", "splits_final")  # JSON files beside plans
PADDING_WARNING = 1.5  # a patch this many times the median image is mostly padding

Sizes = list[Count]
Numbers = list[Annotated[float, Ge(0)]]  # of a cascade's low resolution too, whose median is none


class _Architecture(TypedDict, total=False):
    network_class_name: str
    arch_kwargs: dict[str, Any]  # see `check_supported`
    _kw_requires_import: list[str]


class _Configuration(TypedDict, total=False):
    """What nnSSL reads of a configuration; the first version of nnU-Net's plans had other keys."""

    data_identifier: Name
    inherits_from: str
    patch_size: Sizes
    batch_size: Count
    spacing: list[Positive]
    median_image_size_in_voxels: Numbers
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    architecture: _Architecture


class _Pool(TypedDict, total=False):
    members: dict[str, list[str]]
    splits: dict[str, str]


class Plans(TypedDict):
    """What nnSSL reads of plans; nnU-Net reads more."""

    plans_name: Name
    dataset_name: NotRequired[Name]
    configurations: dict[Name, _Configuration]
    image_reader_writer: NotRequired[str]
    transpose_forward: NotRequired[list[Whole]]
    transpose_backward: NotRequired[list[Whole]]
    foreground_intensity_properties_per_channel: NotRequired[dict[str, dict[str, Any]]]
    nnssl_pool: NotRequired[_Pool]


class Description(TypedDict):
    labels: dict[str, Any]
    channel_names: NotRequired[dict[str, Any]]
    modality: NotRequired[dict[str, Any]]  # the former name
    file_ending: NotRequired[str]


def check_plans(plans: Any, where: str) -> dict[str, Any]:
    """Returns plans if their entries are of the types that they must have, else ValueError."""
    return check_content(plans, Plans, where)


def check_description(description: Any, where: str) -> dict[str, Any]:
    """As `check_plans`, of the content of a ``dataset.json``."""
    return check_content(description, Description, where)


def read_plans(file: Path, configuration: str | None = None) -> dict[str, Any]:
    """The content of a plans file; raises ValueError where it lacks the configuration."""
    plans = check_plans(read_json(file, Any), str(file))
    if configuration is not None:
        check_configuration(plans, configuration, f"{file.name} has")
    return plans


def check_configuration(plans: Mapping[str, Any], name: str, have: str = "the plans have") -> None:
    """Raises ValueError where plans lack a configuration; `have` begins the list of theirs."""
    known = plans.get("configurations", {})
    if name not in known:
        names = ", ".join(known) or "none"
        raise ValueError(f"configuration is {name!r}; {have} {names}{suggest(name, known)}")


def read_description(folder: Path) -> dict[str, Any]:
    """Content of the ``dataset.json`` of a raw or preprocessed dataset."""
    file = folder / DATASET_FILE
    return check_description(read_json(file, Any), str(file))


def name_channels(dataset: Mapping[str, Any]) -> list[str]:
    """Names of the input channels in ``dataset.json``, in their order."""
    names = dataset.get("channel_names", dataset.get("modality", {}))
    return [str(name) for name in names.values()]


def count_channels(dataset: Mapping[str, Any]) -> int:
    """Number of input channels that ``dataset.json`` names."""
    return len(name_channels(dataset))


def find_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One configuration of plans.

    Raises:
        ValueError: It is unknown, or inherits from another.
    """
    check_configuration(plans, name)
    known = plans["configurations"]
    if parent := known[name].get("inherits_from"):
        raise ValueError(f"configuration {name} inherits from {parent}: take {parent} instead")
    found: dict[str, Any] = known[name]
    return found


def make_architecture(
    network: str,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    blocks: Sequence[int],
    levels: Sequence[int] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """The entry `architecture` of a configuration, as nnU-Net plans it.

    Args:
        network: `PLAIN`, `RESIDUAL` or `RESNET`.
        features: of each encoder stage.
        strides: of each encoder stage, per axis.
        blocks: convolutions (plain) or blocks of each encoder stage.
        levels: convolutions of each decoder stage; None: as nnU-Net, 2 behind a plain encoder and 1
            behind others; behind a ResNet 2 at full resolution, where the skip is the bare image.
        kernels: of each stage; None: 3 along every axis.
    """
    dimension, stages = len(strides[0]), len(features)
    if levels is None:
        levels = [2 if network == PLAIN else 1] * (stages - 1)
        levels = [*levels[:-1], 2] if network == RESNET else levels
    knobs: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [list(kernel) for kernel in kernels or [[3] * dimension] * stages],
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage" if network == PLAIN else "n_blocks_per_stage": list(blocks),
        "n_conv_per_stage_decoder": list(levels),
    }
    layers: dict[str, Any] = {
        "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
        "dropout_op": None,
        "nonlin": "torch.nn.LeakyReLU",
    }
    more = {
        "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op_kwargs": None,
        "nonlin_kwargs": {"inplace": True},
    }
    if network == RESNET:  # it has its own layers
        layers = more = {}
    return {
        "network_class_name": network,
        "arch_kwargs": {**knobs, **layers, **more},
        "_kw_requires_import": list(layers),
    }


def keep_one_configuration(
    plans: Mapping[str, Any], name: str, configuration: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Copy of plans under another name, with this configuration alone and its own data folder.

    The configuration is a single stage: what ties it to a cascade is left out.

    Raises:
        ValueError: The name is that of the plans themselves.
    """
    if name == plans.get("plans_name"):
        raise ValueError(f"name is {name!r}, that of the plans it starts from; give another --name")
    single = {key: value for key, value in content.items() if key != "next_stage"}
    single["data_identifier"] = f"{name}_{configuration}"
    rest = {key: value for key, value in plans.items() if key != "configurations"}
    return copy.deepcopy({**rest, "plans_name": name, "configurations": {configuration: single}})


def change_spacing(planned: Mapping[str, Any], spacing: Sequence[float]) -> dict[str, Any]:
    """Copy of a configuration with another spacing, the median image in its voxels."""
    sizes = zip(planned["median_image_size_in_voxels"], planned["spacing"], spacing, strict=True)
    median = [voxels * mm / new for voxels, mm, new in sizes]
    changed = {"spacing": list(spacing), "median_image_size_in_voxels": median}
    return {**copy.deepcopy(dict(planned)), **changed}


def warn_of_padding(planned: Mapping[str, Any]) -> list[str]:
    """A sentence for every axis along which the patch is much longer than the median image."""
    pairs = zip(planned["patch_size"], planned["median_image_size_in_voxels"], strict=True)
    return [
        f"patch axis {axis} is {length} voxels, the median image only {median:.0f}: mostly padding"
        for axis, (length, median) in enumerate(pairs)
        if length > PADDING_WARNING * median
    ]


def write_new_plans(folder: Path, plans: Mapping[str, Any]) -> Path:
    """Write plans under their name; the same content may be there already.

    Raises:
        ValueError: Other plans have this name or this folder of preprocessed cases.
    """
    path = _name_plans_file(folder, plans["plans_name"])
    if path.exists() and read_json(path) != plans:
        raise ValueError(
            f"{path} exists already and says something else; give another --name, or delete it "
            "together with the cases that were preprocessed by it"
        )
    own = _data_folders(plans)
    for other in sorted(folder.glob("*.json")):
        if other != path and (shared := own & _data_folders(read_json(other, Any))):
            raise ValueError(
                f"{other} keeps its cases in {sorted(shared)} too; give another --name"
            )
    write_json(path, plans)
    return path


def _name_plans_file(folder: Path, name: str) -> Path:
    """The file in which plans of a new name are written.

    Raises:
        ValueError: It is no name of plans, or a file of that name holds something else.
    """
    check_name(name, "--name", NOT_PLANS)
    if "__" in name:
        raise ValueError(f"--name: found {name!r}; nnU-Net splits folders of results at '__'")
    path = folder / f"{name}.json"
    if path.exists():
        content = read_json(path, Any)
        if not isinstance(content, Mapping) or content.get("plans_name") != name:
            raise ValueError(f"{path} does not hold plans {name}; give another --name")
    return path


def _data_folders(plans: Any) -> set[str]:
    """Folders of preprocessed cases that a plans file names; none for other JSON files."""
    configurations = plans.get("configurations", {}) if isinstance(plans, Mapping) else {}
    return {
        entry["data_identifier"] for entry in configurations.values() if "data_identifier" in entry
    }
