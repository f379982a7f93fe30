"""Files of weights of any maker, read without running code and named as a planned U-Net is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnssl.common.content import check_content, check_size
from nnssl.common.files import read_json
from nnssl.config.files import INSTALLED, read_yaml, user_folders
from nnssl.finetuning.names import first_name
from nnssl.finetuning.weights import Source
from nnssl.nnunet.archives import load_plain, load_safetensors, unpickle
from nnssl.nnunet.checkpoint import check_checkpoint, find_plans, refusing_damage, require_file
from nnssl.nnunet.hub import PREFIX, fetch
from nnssl.nnunet.paths import ADAPTATION_PLAN_FILE, FINAL
from nnssl.nnunet.plans import name_channels

KEY_MAPS = "weights"  # folder of them, beside trainers
SAFETENSORS = "model.safetensors"  # its name in a folder that travels
OWN_METADATA = "nnssl_checkpoint"  # in safetensors: everything but the weights, as JSON
ADAPTATION_PLAN = "nnssl_adaptation_plan"  # in checkpoints of DKFZ's nnssl
READ_AS = "read_as"  # key of what is known of a file beside its content
_HOLDERS = (
    *("state_dict", "model_state_dict", "model", "net", "network"),
    *("student", "online_backbone"),  # beside a teacher, a target
)
_UNET = re.compile(r"encoder\.(stages|stem)\.")
TRUST = "weights.trust_pickle=true"


@dataclass(frozen=True)
class KeyMap:
    """How a maker's names become those of a planned U-Net: a file of `nnssl_configs/weights`.

    Attributes:
        name: of the maker or the method.
        about: what it says of licence, citation and images.
        mark: a pattern that one of the names must match whole.
        keys: pattern of a whole name -> the U-Net's name; null: left out.
    """

    name: str
    about: Mapping[str, str]
    mark: re.Pattern[str]
    keys: Mapping[re.Pattern[str], str | None]

    def fits(self, names: Iterable[str]) -> bool:
        return any(self.mark.fullmatch(name) for name in names)

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that have a place, under their new names."""
        named = {}
        for key, tensor in weights.items():
            for pattern, name in self.keys.items():
                if found := pattern.fullmatch(key):
                    if name is not None:
                        named[found.expand(name)] = tensor
                    break
        return named


def read_key_map(file: Path) -> KeyMap:
    """Reads a key map (YAML); raises ValueError where an entry is wrong.

    An optional `prefix` is a pattern that stands before all others.
    """
    content = read_yaml(file)
    kind = {"about": dict[str, str], "recognised_by": str, "keys": dict[str, str | None]}
    for name, expected in kind.items():
        if name not in content:
            raise ValueError(f"{file}: {name} is missing; a key map has {', '.join(kind)}")
        check_content(content[name], expected, f"{file}, {name}")
    prefix = check_content(content.get("prefix", ""), str, f"{file}, prefix")
    try:
        keys = {re.compile(prefix + pattern): name for pattern, name in content["keys"].items()}
        mark = re.compile(prefix + content["recognised_by"])
    except re.error as error:
        raise ValueError(f"{file}: a pattern is wrong: {error}") from None
    about = content["about"]
    return KeyMap(about.get("name", file.stem), about, mark, keys)


def find_weight_file(named: str | Path) -> Path:
    """The file that a path or `hf://owner/name` stands for.

    A folder stands for the one finished model in it: of nnU-Net (`fold_0/checkpoint_final.pth`), or
    one that `nnssl_export` has written.
    """
    if str(named).startswith(PREFIX):
        return fetch(str(named))
    path = Path(named).expanduser()
    if not path.is_dir():
        return path
    if (path / SAFETENSORS).is_file():
        return path / SAFETENSORS
    found = sorted({*path.glob(FINAL), *path.glob(f"fold_*/{FINAL}")})
    return found[0] if len(found) == 1 else path


def read_weights(
    file: str | Path, trust_pickle: bool = False, key_map: str | None = None
) -> dict[str, Any]:
    """Reads a file of weights of any known maker onto the CPU, without running code that it holds.

    Args:
        file: of torch.save (`.pth`, `.pt`, ...) or safetensors.
        trust_pickle: run what the file holds, if it cannot be read otherwise.
        key_map: a file that says how its names become a U-Net's; else it is recognised, by key maps
            in `weights` of the user's folders first.

    Returns:
        As `read_checkpoint`, and under `READ_AS` what is known beside: `format`, and what the
        file or its key map says of `licence` and `citation`. `network_weights` are empty where the
        names are no U-Net's and no key map fits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds more than plain values, or no weights.
    """
    path = Path(file)
    require_file(path, "the weights")
    with refusing_damage(path):
        content, metadata = _read_content(path, trust_pickle)
        checkpoint = _as_checkpoint(content, metadata)
        checkpoint = check_checkpoint({**checkpoint, **_find_plan_beside(path, checkpoint)})
        read_as = {"format": _name_format(checkpoint, metadata), **find_credits(checkpoint)}
        weights = checkpoint["network_weights"]
        chosen = read_key_map(Path(key_map).expanduser()) if key_map else _find_key_map(weights)
        if ADAPTATION_PLAN in checkpoint:
            weights = _take_off_prefixes(weights, checkpoint[ADAPTATION_PLAN])
        if chosen is not None:
            read_as = {**read_as, "format": chosen.name, **chosen.about}
            weights = chosen.rename(weights)
        read_as["tensors"] = str(len(checkpoint["network_weights"]))
        return {**checkpoint, "network_weights": weights, READ_AS: read_as}


def as_source(checkpoint: Mapping[str, Any]) -> Source:
    """What the fit of weights is told of a checkpoint; all counts as trained unless it is ours.

    Raises:
        ValueError: its tensors are not those of a U-Net.
    """
    own = checkpoint.get("nnssl", {})
    weights = checkpoint["network_weights"]
    told = checkpoint.get(READ_AS, {})
    if told and not any(_UNET.match(first_name(key)) for key in weights):
        raise ValueError(
            f"its {told.get('tensors')} tensors have no names of nnU-Net's U-Nets (format: "
            f"{told.get('format')}). Give a key map, a file that says how they are called there: "
            "weights.key_map, or in `weights` of a folder that the variable nnssl_configs names; "
            "see docs/transfer.md"
        )
    description = (checkpoint.get("init_args") or {}).get("dataset_json") or {}
    inputs = own.get("trained_inputs") or {}
    return Source(weights, own.get("trained_keys"), inputs, name_channels(description))


def find_inputs(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The configuration by which a source's images were prepared, where it is told."""
    if (found := find_plans(checkpoint)) is not None:
        plans, name = found
        return _inherit(plans["configurations"], name)
    plan = (checkpoint.get(ADAPTATION_PLAN) or {}).get("pretrain_plan") or {}
    configurations = plan.get("configurations") or {}
    told = (checkpoint.get("init_args") or {}).get("configuration_name")
    return configurations.get(told) or next(iter(configurations.values()), None)


def _inherit(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits; a circle ends."""
    merged: dict[str, Any] = {}
    for _ in configurations:
        entry = configurations.get(name, {})
        merged = {**entry, **merged}
        name = entry.get("inherits_from", "")
    return merged


def _read_content(path: Path, trust_pickle: bool) -> tuple[Any, dict[str, str]]:
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    try:
        return load_plain(path), {}
    except ValueError as error:
        if trust_pickle:
            return unpickle(path), {}
        if "could run code" not in str(error):
            raise
        raise ValueError(
            f"{error}. If you trust whoever made it with running code as you: {TRUST}"
        ) from error


def _as_checkpoint(content: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The content with its tensors under `network_weights`."""
    if isinstance(content, torch.nn.Module):  # a trusted file
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, allowed is a mapping of tensors")
    if isinstance(content.get("network_weights"), Mapping):
        return dict(content)
    if OWN_METADATA in metadata:
        try:
            told = json.loads(metadata[OWN_METADATA])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its metadata are no JSON ({error})") from None
        check_size(told, "its metadata")
        return {**check_content(told, dict[str, Any], "its metadata"), "network_weights": content}
    holder = next((n for n in _HOLDERS if isinstance(content.get(n), Mapping)), None)
    tensors = dict(_find_tensors(content[holder] if holder else content))
    if not tensors:
        raise ValueError(f"it holds no weights; its entries are {', '.join(map(str, content))}")
    return {"network_weights": tensors}


def _find_plan_beside(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """DKFZ's plan where it is a file: beside the weights, or beside the folder of their fold.

    Some of their trainers leave it out of the checkpoint. A plan of other tensors is not taken.
    """
    if ADAPTATION_PLAN in checkpoint or "nnssl" in checkpoint or find_plans(checkpoint):
        return {}
    for folder in (path.parent, path.parent.parent):
        if (folder / ADAPTATION_PLAN_FILE).is_file():
            plan = read_json(folder / ADAPTATION_PLAN_FILE)
            encoder = f"{plan.get('key_to_encoder')}."
            known = any(str(key).startswith(encoder) for key in checkpoint["network_weights"])
            return {ADAPTATION_PLAN: plan} if known else {}
    return {}


def _find_tensors(content: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield key, value


def _name_format(checkpoint: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    if OWN_METADATA in metadata:
        return "nnSSL, exported"
    if "nnssl" in checkpoint:
        return "nnSSL"
    if ADAPTATION_PLAN in checkpoint:
        return "DKFZ nnssl with an adaptation plan"
    if find_plans(checkpoint) is not None:
        return "nnU-Net v2"
    return "checkpoint without plans" if "init_args" in checkpoint else "plain state dict"


def find_credits(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Licence and citation, as far as the file tells them."""
    own = checkpoint.get("nnssl")
    about = own.get("about") if isinstance(own, Mapping) else None
    told = {**checkpoint, **(about if isinstance(about, Mapping) else {})}
    names = {"licence": ("licence", "license"), "citation": ("citation", "citations", "bibtex")}
    found = {}
    for name, keys in names.items():
        value = next((told[key] for key in keys if told.get(key)), None)
        if value is not None:
            found[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def _find_key_map(weights: Mapping[str, Any]) -> KeyMap | None:
    if any(_UNET.match(first_name(key)) for key in weights):
        return None
    folders = [folder / KEY_MAPS for folder in (*user_folders(), INSTALLED)]
    maps = (read_key_map(file) for folder in folders for file in sorted(folder.glob("*.yaml")))
    return next((each for each in maps if each.fits(weights)), None)


def _take_off_prefixes(weights: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Names under which DKFZ's plan says that encoder and stem stand, as nnU-Net's."""
    parts = {"key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem"}
    prefixes = {str(plan[key]): name for key, name in parts.items() if plan.get(key)}

    def rename(key: str) -> str:
        for prefix, name in prefixes.items():
            if key.startswith(f"{prefix}."):
                return name + key[len(prefix) :]
        return key

    return {rename(key): tensor for key, tensor in weights.items()}
