"""Arms that start from a file of weights of the user: found, hashed, and tried on the plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnssl.common.files import hash_file
from nnssl.nnunet.checkpoint import require_file
from nnssl.nnunet.hub import PREFIX
from nnssl.nnunet.paths import plans_file
from nnssl.nnunet.planned_network import build_planned_network
from nnssl.nnunet.plans import name_channels, read_description, read_plans
from nnssl.nnunet.runs import WeightSource
from nnssl.nnunet.weight_files import find_weight_file, read_weights
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import PretrainingArm, Study
from nnssl.training.finetuning_weights import fit_checkpoint


def give_weights(study: Study, files: Mapping[str, str]) -> Study:
    """The study with files for some of its arms of weights, in the place of those of its YAML.

    Raises:
        ValueError: there is no such arm, or it pre-trains.
    """
    allowed = [name for name, arm in study.pretraining.items() if arm.trainer is None]
    if unknown := [name for name in files if name not in allowed]:
        raise ValueError(
            f"--weights: found {unknown[0]!r}; arms of this study that take a file: "
            f"{', '.join(allowed) or 'none'}"
        )
    given = {name: replace(study.pretraining[name], weights=file) for name, file in files.items()}
    return replace(study, pretraining={**study.pretraining, **given})


def identify_weights(study: Study) -> Study:
    """The study with the path and the SHA-256 of every file that an arm starts from.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file holds other weights than the study says.
    """
    arms = {name: _identify(name, arm) for name, arm in study.pretraining.items()}
    return replace(study, pretraining=arms)


def _identify(name: str, arm: PretrainingArm) -> PretrainingArm:
    if arm.weights is None:
        return arm
    file = find_weight_file(arm.weights)
    require_file(file, f"the weights of pretraining.{name}")
    found = hash_file(file)
    if arm.sha256 not in (None, found):
        raise ValueError(
            f"pretraining.{name}: {arm.weights} has the SHA-256 {found}; the study says "
            f"{arm.sha256}. Give the same file, or the arm another name"
        )
    named = arm.weights
    if not named.startswith(PREFIX):
        named = str(Path(named).expanduser().absolute())
    return replace(arm, weights=named, sha256=found)


def find_weight_problems(study: Study, cells: Sequence[Cell]) -> Iterator[str]:
    """Tries every file on the plans of the runs that start from it; prints the shares that load."""
    tried = set()
    for cell in cells:
        if cell.starts_from is None:
            continue
        knobs = cell.overrides if cell.kind == "finetune" else {}
        chosen = {k.removeprefix("weights."): v for k, v in knobs.items() if k[:8] == "weights."}
        where = (cell.starts_from, cell.dataset, cell.plans, cell.kind, tuple(chosen.items()))
        if where in tried:
            continue
        tried.add(where)
        arm = study.pretraining[cell.starts_from]
        assert arm.weights is not None
        try:
            print(f"{cell.method}: {_try(arm.weights, cell, study.configuration, chosen)}")
        except (OSError, ValueError) as error:
            yield f"{cell.method}: {arm.weights}: {error}"


def _try(weights: str, cell: Cell, configuration: str, chosen: Mapping[str, Any]) -> str:
    """What of the weights would load; raises ValueError where the run would refuse them."""
    knobs, file = WeightSource(**chosen), plans_file(cell.dataset, cell.plans)
    dataset = read_description(file.parent)
    network = build_planned_network(read_plans(file), configuration, dataset)
    checkpoint = read_weights(find_weight_file(weights), knobs.trust_pickle, knobs.key_map)
    found = fit_checkpoint(network, checkpoint, knobs, channels=name_channels(dataset))
    found.require(knobs.min_share)
    return (
        f"{weights} loads {found.share:.1%} of what it holds: {found.share_of_encoder:.1%} of the "
        f"encoder, {found.share_of_network:.1%} of the network of {cell.plans}"
    )
