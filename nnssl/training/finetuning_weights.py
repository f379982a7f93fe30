"""The weights that a fresh fine-tuning run starts from: found, loaded, reported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.finetuning.weights import OUTPUT_LAYERS, load
from nnssl.leakage import pool_rule as pool_rule
from nnssl.leakage.same_dataset import contamination
from nnssl.nnunet import weight_search as search
from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.training import transfer

if TYPE_CHECKING:
    from nnssl.training.finetuner import nnSSLFinetuner


class StartingWeights:
    """Looks for the weights of a trainer's fresh run and loads them into its network."""

    def __init__(self, trainer: nnSSLFinetuner) -> None:
        self.trainer = trainer
        self.knobs = trainer.weight_source
        self.log = trainer.print_to_log_file

    def load(self, loaded_from_outside: bool) -> dict[str, Any]:
        """Returns the record for the checkpoint; `loaded` holds the keys that were transferred.

        Args:
            loaded_from_outside: whether `-pretrained_weights` has filled the network already.
        """
        named = search.named_file(self.knobs, os.environ.get(search.ENVIRONMENT))
        if loaded_from_outside:
            return self._from_outside(named)
        if self.knobs.source == search.NONE and named is None:
            self.log("Weights: all random (weights.source: none)")
            return {"source": None, "how": "random", "loaded": [], **_seen(False)}
        how = "named" if named else "found as the finished pre-training run of this fold"
        file = named or search.find_finished_run(self._place(), self.knobs.trainer)
        return self._from_file(file, how)

    def _from_outside(self, named: Path | None) -> dict[str, Any]:
        network = self.trainer.planned_network
        if self.knobs.source == search.NONE:
            raise ValueError(
                "-pretrained_weights was given to a trainer with weights.source: none, whose "
                "weights are random by design. Leave it out, or use nnSSLFinetuneTrainer."
            )
        if named and not transfer.same_weights(network, read_checkpoint(named)):
            raise ValueError(
                f"-pretrained_weights has loaded other weights than those of {named}, which "
                f"weights.source or {search.ENVIRONMENT} names. Give one of them only."
            )
        keys = [key for key, _ in network.named_parameters() if OUTPUT_LAYERS not in f".{key}"]
        self.log(
            "Weights: nnU-Net has loaded everything but the segmentation layers "
            "(-pretrained_weights); nothing is searched"
        )
        seen = _seen(None)
        if named:
            seen = self._contamination(read_checkpoint(named).get("nnssl", {}))
        source = str(named) if named else None
        return {"source": source, "how": "-pretrained_weights", "loaded": keys, **seen}

    def _from_file(self, file: Path, how: str) -> dict[str, Any]:
        trainer, checkpoint = self.trainer, read_checkpoint(file)
        seen = self._contamination(checkpoint.get("nnssl", {}))
        network = trainer.planned_network
        found = transfer.plan_transfer(network, checkpoint, self.knobs, trainer.is_cascaded)
        load(network, found)
        warnings = transfer.input_differences(
            checkpoint, trainer.plans_manager, trainer.configuration_name
        )
        self.log(f"Weights from {file} ({how}):\n{found.table()}")
        for line in (*warnings, *_contamination_sentences(seen)):
            self.log(f"WARNING: {line}")
        objective = checkpoint.get("nnssl", {}).get("objective")
        origin = {"source": str(file), "how": how, "objective": objective}
        return {**origin, **found.to_dict(), **seen, "warnings": warnings}

    def _place(self) -> search.RunLocation:
        trainer = self.trainer
        assert trainer.output_folder_base is not None
        return search.RunLocation(
            results=Path(trainer.output_folder_base).parent,
            plans=trainer.plans_manager.plans_name,
            configuration=self._pretraining_configuration(),
            fold=trainer.fold,
        )

    def _pretraining_configuration(self) -> str:
        """A cascade's second stage takes the weights of the configuration that it inherits from."""
        trainer = self.trainer
        plan = trainer.plans_manager.plans["configurations"][trainer.configuration_name]
        own: str = trainer.configuration_name
        return plan.get("inherits_from", own) if trainer.is_cascaded else own

    def _contamination(self, own: Mapping[str, Any]) -> dict[str, Any]:
        trainer = self.trainer
        if trainer.fold == "all":
            return _seen(None)
        _, val = trainer.do_split()
        folder = Path(trainer.preprocessed_dataset_folder_base)
        if not self._same_dataset(own):
            return self._foreign(own, pool_rule.Evaluation(folder, int(trainer.fold), val))
        records = read_cases(folder, {*val, *own.get("cases", {}).get("train", [])})
        return contamination(own, trainer.plans_manager.dataset_name, val, records)

    def _foreign(self, own: Mapping[str, Any], evaluation: pool_rule.Evaluation) -> dict[str, Any]:
        """Weights of a pool, or of another dataset: refused where they saw what is evaluated."""
        found = pool_rule.inspect(own, evaluation)
        pool_rule.refuse(found, self.knobs.allow_contamination)
        return {
            "contaminated": found.contaminated,
            "seen_validation_cases": list(found.cases),
            "contamination": list(found.reasons),
            "pretraining": {"dataset": own.get("dataset"), "fold": own.get("fold")},
        }

    def _same_dataset(self, own: Mapping[str, Any]) -> bool:
        return own.get("dataset") == self.trainer.plans_manager.dataset_name


def _seen(contaminated: bool | None) -> dict[str, Any]:
    return {"contaminated": contaminated, "seen_validation_cases": []}


def _contamination_sentences(seen: Mapping[str, Any]) -> list[str]:
    if seen["contaminated"] is None:
        return ["it cannot be told whether the source has seen the patients that validate here."]
    if not seen["contaminated"]:
        return []
    if seen.get("contamination"):
        return [
            f"CONTAMINATED (allow_contamination): {reason} The validation result is not an honest "
            "one."
            for reason in seen["contamination"]
        ]
    cases = seen["seen_validation_cases"]
    return [
        f"CONTAMINATED: pre-training has seen the patients of {len(cases)} validation cases of "
        f"this fold ({', '.join(cases[:5])}); the validation result is not an honest one."
    ]
