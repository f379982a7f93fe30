"""A model that travels: weights without code, stock checkpoint, plans, hashes, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from nnssl.common.files import atomic_path, hash_file, write_json
from nnssl.finetuning.names import name_once
from nnssl.finetuning.structure import Structure, describe
from nnssl.nnunet.checkpoint import find_plans, make_plain, save_atomically
from nnssl.nnunet.paths import ADAPTATION_PLAN_FILE, CONFIG_FILE, DATASET_FILE, FINAL
from nnssl.nnunet.weight_files import (
    ADAPTATION_PLAN,
    OWN_METADATA,
    SAFETENSORS,
    find_credits,
    find_inputs,
)

MANIFEST, CARD = "manifest.json", "README.md"
HUB_MARK = "config.json"  # hubs count a download where it is fetched
# of our part of a checkpoint; who was seen travels only where it is asked for
KEPT = (
    "kind", "dataset", "configuration", "fold", "plans", "config", "versions", "objective",
    "trained", "trained_keys", "trained_inputs", "input_channels", "step", "epoch", "about",
)  # fmt: skip
WHO = ("cases", "ancestors", "weights", "labels")
DESCRIPTION = ("channel_names", "modality", "labels", "regions_class_order", "file_ending")
STOCK = ("trainer_name", "inference_allowed_mirroring_axes", "current_epoch")


@dataclass(frozen=True)
class Export:
    """A checkpoint, ready to be given away.

    Attributes:
        checkpoint: as `read_checkpoint` gives it.
        plans: of nnU-Net.
        configuration: name of its configuration.
        structure: of its network.
        content: what the written checkpoint holds, weights aside.
    """

    checkpoint: Mapping[str, Any]
    plans: Mapping[str, Any]
    configuration: str
    structure: Structure
    content: Mapping[str, Any]

    @property
    def fold(self) -> str:
        return str(self.content["init_args"].get("fold", 0))

    @property
    def pretrained(self) -> bool:
        """Whether it segments nothing yet."""
        return self.content.get("nnssl", {}).get("kind") == "pretrain"


def prepare(checkpoint: Mapping[str, Any], with_cases: bool = False) -> Export:
    """What of a checkpoint is given away.

    Args:
        checkpoint: of nnSSL or nnU-Net.
        with_cases: whether names and signatures of the training cases travel too. Without them
            nobody can tell whether a later evaluation shows them to the model again.

    Raises:
        ValueError: it does not say by which plans it was trained, or holds no U-Net.
    """
    found, structure = find_plans(checkpoint), describe(checkpoint["network_weights"])
    if found is None or structure is None:
        raise ValueError("it holds no U-Net, or does not say by which plans it was trained")
    plans = {key: value for key, value in found[0].items() if not key.startswith("nnssl")}
    init, own = checkpoint.get("init_args") or {}, checkpoint.get("nnssl") or {}
    dataset = init.get("dataset_json") or {}
    described = {key: dataset[key] for key in DESCRIPTION if key in dataset}
    fold = own.get("fold", init.get("fold", 0))
    content = {
        **{key: checkpoint[key] for key in STOCK if key in checkpoint},
        "init_args": {
            "plans": plans,
            "configuration": found[1],
            "fold": fold,
            "dataset_json": described,
        },
    }
    if own:
        chosen = {key: own[key] for key in KEPT if key in own}
        chosen |= {"plans": plans} if "plans" in own else {}
        told = {key: own[key] for key in WHO if key in own} if with_cases else {}
        content["nnssl"] = forget_folders({**chosen, **told})
        if "weights" in own and not with_cases:
            content["nnssl"]["weights"] = {"loaded": own["weights"]["loaded"]}
    if structure.architecture == "ResidualEncoderUNet" and structure.dimension == 3:
        entry = find_inputs(checkpoint) or {}
        trained = {**plans, "configurations": {found[1]: entry}}
        content[ADAPTATION_PLAN] = make_adaptation_plan(trained, structure)
    return Export(checkpoint, plans, found[1], structure, make_plain(content))


def forget_folders(value: Any) -> Any:
    """The same with names of files in the place of absolute paths, which say where one works."""
    if isinstance(value, Mapping):
        return {key: forget_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [forget_folders(inner) for inner in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value


def make_adaptation_plan(plans: Mapping[str, Any], structure: Structure) -> dict[str, Any]:
    """What DKFZ's nnssl writes beside weights: where encoder and stem stand, and the plans.

    Args:
        plans: with the one configuration that was trained; nnU-Net reads the first.
        structure: of the network.
    """
    (entry,) = plans["configurations"].values()
    architecture = entry.get("architecture", {})
    return {
        "architecture_plans": {
            "arch_class_name": architecture.get("network_class_name", structure.architecture),
            "arch_kwargs": architecture.get("arch_kwargs"),
            "arch_kwargs_requiring_import": architecture.get("_kw_requires_import"),
        },
        "pretrain_plan": dict(plans),
        "pretrain_num_input_channels": structure.channels,
        "recommended_downstream_patchsize": entry["patch_size"],
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }


def write(export: Export, folder: Path, licence: str | None, probe: Mapping[str, float]) -> None:
    """Writes the folder, which fine-tuning takes as it is.

    A segmentation model's checkpoint lies where `nnUNetv2_predict_from_modelfolder` looks for it;
    that of pre-trained weights at the root, as in DKFZ's repositories.

    Args:
        export: see `prepare`.
        folder: which is empty or not there.
        licence: of the weights, as hubs name licences (`cc-by-4.0`).
        probe: figures of the frozen features.

    Raises:
        ValueError: the folder holds something.
    """
    from safetensors.torch import save_file

    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--to: {folder} holds files already; name a new folder")
    stock = folder / FINAL if export.pretrained else folder / f"fold_{export.fold}" / FINAL
    stock.parent.mkdir(parents=True, exist_ok=True)
    weights = export.checkpoint["network_weights"]
    save_atomically({"network_weights": weights, **export.content}, stock)
    metadata = {"format": "pt", OWN_METADATA: json.dumps(export.content)}
    tensors = {key: tensor.contiguous() for key, tensor in name_once(weights).items()}
    with atomic_path(folder / SAFETENSORS) as part:
        save_file(tensors, part, metadata)
        part.chmod(stock.stat().st_mode)  # the library lets nobody else read it
    write_json(folder / "plans.json", export.plans)
    write_json(folder / DATASET_FILE, export.content["init_args"]["dataset_json"])
    if ADAPTATION_PLAN in export.content:
        write_json(folder / ADAPTATION_PLAN_FILE, export.content[ADAPTATION_PLAN])
    write_json(folder / HUB_MARK, {"model_type": "nnunetv2"})
    config = export.content.get("nnssl", {}).get("config")
    if config is not None:
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    (folder / CARD).write_text(make_card(export, licence, probe), "utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(folder)): hash_file(path) for path in files}
    write_json(folder / MANIFEST, {"sha256": hashes})


def make_card(export: Export, licence: str | None, probe: Mapping[str, float]) -> str:
    """The model card, with the head that model hubs read."""
    own, structure = export.content.get("nnssl", {}), export.structure
    head = {
        "license": licence or "unknown",
        "library_name": "nnunetv2",
        "pipeline_tag": "image-segmentation",
        "tags": ["medical-imaging", "nnunet", "nnssl", f"{structure.dimension}d"],
    }
    inputs, credit = find_inputs(export.checkpoint) or {}, find_credits(export.checkpoint)
    names = list(export.content["init_args"]["dataset_json"].get("channel_names", {}).values())
    rows = {
        "what": "pre-trained weights" if export.pretrained else "segmentation model",
        "method": own.get("objective") or own.get("config", {}).get("name") or "nnU-Net",
        "data": own.get("dataset") or export.plans.get("dataset_name"),
        "fold": export.fold,
        "epochs": own.get("epoch", export.content.get("current_epoch")),
        "network": f"{structure.architecture}, {structure.dimension}D, features "
        f"{list(structure.features)}, {structure.parameters:,} parameters",
        "input channels": ", ".join(map(str, names)) or structure.channels,
        "spacing": inputs.get("spacing"),
        "patch": inputs.get("patch_size"),
        "normalisation": inputs.get("normalization_schemes"),
        "training cases": "named in the files" if "cases" in own else "not named in the files",
        **{name.replace("_", " "): f"{value:.3f}" for name, value in probe.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    use = (
        "```\nexport nnssl_pretrained_weights=THIS_FOLDER   # or weights: {source: hf://owner/name}"
        "\nnnUNetv2_train DATASET CONFIGURATION 0 -tr nnSSLFinetuneTrainer\n```"
        if export.pretrained
        else "```\nnnUNetv2_predict_from_modelfolder -m THIS_FOLDER -i IN -o OUT -f "
        f"{export.fold}\n```"
    )
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {rows['what'].capitalize()}: "
        f"{rows['method']} on {rows['data']}\n\n| | |\n|---|---|\n{table}\n\n## Use\n\n{use}\n\n"
        f"`{MANIFEST}` holds the SHA-256 of every file.\n\n## Licence and citation\n\n"
        f"Licence of the weights: {licence or 'not said'}.\n\n"
        f"```\n{credit.get('citation', 'no citation is stored')}\n```\n"
    )
