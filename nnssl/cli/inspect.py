"""``nnssl_inspect``: what a file of weights is, and which plans that are here it would fit."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnssl.cli.command import command, dataset_id, table
from nnssl.common.files import hash_file
from nnssl.nnunet.paths import PREPROCESSED, find_dataset_names, find_root
from nnssl.nnunet.plans import name_channels, read_description, read_plans

INPUTS = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm")


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("file", help="file or folder with weights of any known maker, or hf://owner/name")
    add("-d", type=dataset_id, dest="dataset_id", help="look at the plans of this dataset only")
    add("--key-map", help="YAML file that says how its names become a U-Net's")
    text = "run what the file holds if it cannot be read otherwise: only for makers you trust"
    add("--trust-pickle", action="store_true", help=text)
    add("--json", action="store_true", help="print JSON")


@command("nnssl_inspect", __doc__, _add_options, example="checkpoint_final.pth -d 27")
def main(options: Namespace) -> None:
    from nnssl.nnunet.weight_files import find_weight_file, read_weights

    file = find_weight_file(options.file)
    checkpoint = read_weights(file, options.trust_pickle, options.key_map)
    told = {**_tell(file, checkpoint), "fits": list(_find_fits(checkpoint, options.dataset_id))}
    print(json.dumps(told, indent=2) if options.json else _write(told))


def _tell(file: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    from nnssl.finetuning.structure import describe
    from nnssl.nnunet.weight_files import READ_AS, find_inputs

    own, init = checkpoint.get("nnssl", {}), checkpoint.get("init_args") or {}
    structure = describe(checkpoint["network_weights"])
    shown = {} if structure is None else vars(structure)
    inputs = find_inputs(checkpoint) or {}
    trained = own.get("trained_keys")
    parts = sorted({key.split(".")[0] for key in trained}) if trained else ["everything"]
    found = {
        "file": str(file),
        "sha256": hash_file(file),
        **checkpoint[READ_AS],
        "method": own.get("objective") or checkpoint.get("trainer_name"),
        "dataset": own.get("dataset") or (init.get("plans") or {}).get("dataset_name"),
        "trained": ", ".join(parts),
        "channel_names": name_channels(init.get("dataset_json") or {}),
        **shown,
        **{name: inputs.get(name) for name in INPUTS},
    }
    return {name: value for name, value in found.items() if value not in (None, [], "")}


def _find_fits(checkpoint: Mapping[str, Any], number: int | None) -> Iterator[dict[str, Any]]:
    """What would load into every configuration that is planned here."""
    from nnssl.finetuning.structure import describe

    root = find_root(PREPROCESSED)
    if root is None or describe(checkpoint["network_weights"]) is None:
        return
    chosen = find_dataset_names(number, root) if number is not None else None
    for folder in sorted(root.glob("Dataset*")):
        if chosen is None or folder.name in chosen:
            yield from _find_fits_of(folder, checkpoint)


def _find_fits_of(folder: Path, checkpoint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    from nnssl.nnunet.planned_network import build_planned_network
    from nnssl.nnunet.runs import WeightSource
    from nnssl.training.finetuning_weights import fit_checkpoint

    for file in sorted(folder.glob("*.json")):
        try:
            plans, dataset = read_plans(file), read_description(folder)
        except (ValueError, OSError):  # other files of JSON lie there too
            continue
        for name, entry in plans["configurations"].items():
            row = {"dataset": folder.name, "plans": plans["plans_name"], "configuration": name}
            try:
                network = build_planned_network(plans, name, dataset)
                cascade = bool(entry.get("previous_stage"))
                channels = name_channels(dataset)
                found = fit_checkpoint(network, checkpoint, WeightSource(), cascade, channels)
            except ValueError as error:
                yield {**row, "problem": str(error).splitlines()[0]}
            else:
                done = [m.reason for m in found.matches if m.outcome == "adapted"]
                adapted = {rule for reason in done for rule in reason.split("; ")}
                shares = ("share", "share_of_encoder", "share_of_network")
                yield {
                    **row,
                    **{each: round(getattr(found, each), 4) for each in shares},
                    "adapted": sorted(adapted),
                }


def _write(told: Mapping[str, Any]) -> str:
    lines = [f"{name}: {value}" for name, value in told.items() if name != "fits"]
    if not told["fits"]:
        return "\n".join([*lines, "", "no plans were found that it could be tried with"])
    header = ("dataset", "plans", "configuration", "loads", "of encoder", "of network", "adapted")
    rows = [
        [
            *(row[name] for name in header[:3]),
            *(
                f"{row[name]:.1%}" if name in row else "-"
                for name in ("share", "share_of_encoder", "share_of_network")
            ),
            row.get("problem") or "; ".join(row["adapted"]),
        ]
        for row in told["fits"]
    ]
    return "\n".join([*lines, "", table(header, rows)])
