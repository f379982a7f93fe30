"""The weights that a fresh fine-tuning run starts from: found, checked, matched, loaded, told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnssl.finetuning.report import OUTPUT_LAYERS, Transfer
from nnssl.finetuning.weights import Adaptation, asked_keys, fit, load
from nnssl.leakage.ancestry import ANCESTORS, trace_ancestry
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import SourceJudgement, judge
from nnssl.nnunet import runs
from nnssl.nnunet.checkpoint import read_checkpoint, speaking_of
from nnssl.nnunet.paths import WEIGHTS
from nnssl.nnunet.runs import WeightSource
from nnssl.nnunet.stock_weights import OPTION, find_stock_weights
from nnssl.nnunet.weight_files import READ_AS, as_source, find_inputs, read_weights
from nnssl.training.identity import RANDOM_WEIGHTS, describe_weights

RANDOM = "random"
COMPARED = ("spacing", "normalization_schemes", "use_mask_for_norm")


def find_named_weights(knobs: WeightSource) -> Mapping[str, str]:
    """What YAML or environment name today; empty where they leave it to the search, or name a file
    that is gone."""
    try:
        named = runs.find_named_file(knobs)
    except FileNotFoundError:
        return {}
    if named is None:
        return RANDOM_WEIGHTS if knobs.source == runs.NONE else {}
    return describe_weights(named)


def read_identity_of_weights(record: Mapping[str, Any]) -> Mapping[str, str]:
    """The part `weights` of a run's identity, from the record of its checkpoint."""
    if record.get("how") == RANDOM:
        return RANDOM_WEIGHTS
    names = {"file": record.get("source"), "sha256": record.get("sha256")}
    return {name: value for name, value in names.items() if value}


@dataclass(frozen=True)
class StartingWeights:
    """Looks for the weights of a fresh run and loads them into its network.

    Attributes:
        results: `nnUNet_results/DatasetXXX_NAME`.
        evaluation: what the run is validated on.
        knobs: section `weights`.
        channels: names of the input channels.
    """

    network: nn.Module
    plans: PlansManager
    configuration: str
    results: Path
    evaluation: Evaluation
    knobs: WeightSource
    log: Callable[[str], None]
    channels: Sequence[str] = ()

    def find(self, loaded_from_outside: bool) -> dict[str, Any]:
        """Where they come from: the beginning of the record for the checkpoint, nothing loaded yet.

        Args:
            loaded_from_outside: whether `-pretrained_weights` has filled the network already.
        """
        file = runs.find_named_file(self.knobs)
        if loaded_from_outside:
            file, how = file or find_stock_weights(), OPTION
        elif self.knobs.source == runs.NONE and file is None:
            how = RANDOM
        else:
            how = "named" if file else "found as the finished pre-training run of this fold"
            file = file or self._find_file()
        content = {"sha256": describe_weights(file)["sha256"]} if file else {}
        return {"source": str(file) if file else None, "how": how, "loaded": [], **content}

    def load(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Loads what `find` has found; returns the record, with the keys that were transferred."""
        if found["how"] == OPTION:
            return {**found, **self._accept_loaded(found["source"])}
        if found["how"] == RANDOM:
            self.log("Weights: all random (weights.source: none)")
            return {**found, **SourceJudgement(contaminated=False).record, ANCESTORS: []}
        return {**found, **self._load_file(found["source"], found["how"])}

    def _accept_loaded(self, file: str | None) -> dict[str, Any]:
        named = runs.find_named_file(self.knobs)
        if self.knobs.source == runs.NONE:
            raise ValueError(
                "-pretrained_weights was given to a trainer with weights.source: none, whose "
                "weights are random by design. Leave it out, or use nnSSLFinetuneTrainer."
            )
        checkpoint = read_checkpoint(named) if named else None
        if checkpoint and not _has_weights(self.network, checkpoint["network_weights"]):
            raise ValueError(
                f"-pretrained_weights has loaded other weights than those of {named}, which "
                f"weights.source or {WEIGHTS} names. Give one of them only."
            )
        source = checkpoint or (read_checkpoint(file) if file else {})
        trained = source.get("nnssl", {}).get("trained_keys")
        names = [name for name, _ in self.network.named_parameters()]
        loaded = [name for name in names if OUTPUT_LAYERS not in f".{name}"]
        keys = [key for key in loaded if trained is None or key in trained]
        self.log(
            "Weights: nnU-Net has loaded everything but the segmentation layers "
            f"(-pretrained_weights), of which the source trained {len(keys)} of {len(loaded)} "
            "tensors; nothing is searched"
        )
        judgement = self._judge(source) if file else SourceJudgement()
        for line in judgement.warnings:
            self.log(f"WARNING: {line}")
        return {"loaded": keys, **judgement.record, ANCESTORS: judgement.ancestors}

    def _find_file(self) -> Path:
        """For a cascade's second stage, of the configuration that it inherits from."""
        plan, own = self.plans.plans["configurations"][self.configuration], self.configuration
        place = runs.RunLocation(
            results=self.results,
            plans=self.plans.plans_name,
            configuration=plan.get("inherits_from", own) if self._is_cascaded else own,
            fold=self.evaluation.fold,
        )
        return runs.find_finished_run(place, self.knobs.trainer)

    def _load_file(self, file: str, how: str) -> dict[str, Any]:
        knobs = self.knobs
        checkpoint = read_weights(file, knobs.trust_pickle, knobs.key_map)
        with speaking_of(file):
            judgement = self._judge(checkpoint)
            found = fit_checkpoint(
                self.network, checkpoint, knobs, self._is_cascaded, self.channels
            )
            found.require(knobs.min_share)
            load(self.network, found)
            warnings = compare_inputs(checkpoint, self.plans, self.configuration)
        self.log(f"Weights from {file} ({how}):\n{found.table()}")
        if credit := checkpoint[READ_AS].get("citation"):
            self.log(f"Whoever uses these weights cites: {credit}")
        for line in (*warnings, *judgement.warnings):
            self.log(f"WARNING: {line}")
        objective = checkpoint.get("nnssl", {}).get("objective")
        told = {**judgement.record, ANCESTORS: judgement.ancestors}
        return {"objective": objective, **found.to_dict(), **told, "warnings": warnings}

    def _judge(self, checkpoint: Mapping[str, Any]) -> SourceJudgement:
        judgement = judge(trace_ancestry(checkpoint), self.evaluation)
        judgement.refuse(self.knobs.allow_contamination)
        return judgement

    @property
    def _is_cascaded(self) -> bool:
        configuration = self.plans.get_configuration(self.configuration)
        return configuration.previous_stage_name is not None


def fit_checkpoint(
    network: nn.Module,
    checkpoint: Mapping[str, Any],
    knobs: WeightSource,
    cascade: bool = False,
    channels: Sequence[str] = (),
) -> Transfer:
    """Matches weights that were read with the network.

    Of a decoder that was trained without skip connections the halves of the convolutions that read
    them stay random.

    Args:
        network: the planned U-Net.
        checkpoint: as read; without the key `nnssl` all of it counts as trained.
        knobs: section `weights`.
        cascade: the second stage of a cascade, whose further input channels start at zero.
        channels: names of the network's input channels.

    Raises:
        ValueError: they are no weights of a U-Net, or nothing of what is asked was trained.
    """
    asked = asked_keys(network, knobs.part, knobs.stages)
    adaptation = Adaptation(() if cascade else channels, cascade, knobs.cut_width)
    return fit(as_source(checkpoint), network, asked, adaptation, knobs.stages)


def compare_inputs(
    checkpoint: Mapping[str, Any], plans: PlansManager, configuration: str
) -> list[str]:
    """Sentences on what the source's images were like, as far as it differs from today's."""
    source = find_inputs(checkpoint)
    if source is None:
        return ["The source does not say by which plans its images were prepared."]
    today = plans.get_configuration(configuration).configuration
    values = [(name, source.get(name), list(today[name])) for name in COMPARED]
    return [
        f"{name}: the weights were trained with {old}, today's plans say {new}"
        for name, old, new in values
        if old is not None and list(old) != new
    ]


def _has_weights(network: nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the network holds exactly these weights, segmentation layers aside."""
    own = {k: v for k, v in network.state_dict().items() if OUTPUT_LAYERS not in f".{k}"}
    return all(
        key in weights
        and weights[key].shape == value.shape
        and torch.equal(weights[key], value.cpu())
        for key, value in own.items()
    )
