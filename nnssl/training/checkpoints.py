"""What the checkpoints of both trainers hold, and how pre-training takes one up again.

nnU-Net's own keys are read of nnU-Net's trainer; everything of ours stands under `nnssl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnssl.common.versions import versions
from nnssl.config import Config
from nnssl.leakage.ancestry import ANCESTORS, Ancestor
from nnssl.modules import unet
from nnssl.modules.memory import MomentumCopy
from nnssl.modules.unet import Trained
from nnssl.nnunet.checkpoint import make_plain, own_part
from nnssl.nnunet.paths import CONFIG_FILE
from nnssl.objectives import Objective
from nnssl.training.identity import Identity

STOCK_TRAINER = "nnUNetTrainer"  # prediction builds the network through it, without nnssl


@dataclass(frozen=True)
class Progress:
    """How far a pre-training run is.

    Attributes:
        step: optimiser steps taken.
        epoch: epochs done.
        epoch_terms: terms of each step of the epoch that is under way.
        skipped_steps: steps whose loss or gradient was not finite.
        history: one number per term and epoch.
        finished: whether all steps are taken.
    """

    step: int
    epoch: int
    epoch_terms: Sequence[Mapping[str, float]]
    skipped_steps: int
    history: Mapping[str, list[float | None]]
    finished: bool


def compose_pretraining(
    trainer: nnUNetTrainer,
    objective: Objective,
    trained: Trained,
    config: Config,
    identity: Identity,
    progress: Progress,
    cases: Mapping[str, Any],
    ancestors: Sequence[Ancestor],
    inherited: Sequence[str] = (),
) -> dict[str, Any]:
    """A stock checkpoint of the planned U-Net, and everything else of a pre-training run.

    `trained` are the parts that learn, `identity` is what a resume is compared with, `cases` says
    what was trained on and left out, `ancestors` what the initial weights have seen, `inherited`
    which keys they gave.
    """
    plans, network = trainer.plans_manager.plans, objective.network
    learned = [*unet.trained_keys(network, trained), *inherited]
    own = {
        "kind": "pretrain",
        "objective": config.chosen("objective")[0],
        # without the U-Net, which is stored once under `network_weights`
        "objective_state": {
            k: v for k, v in objective.state_dict().items() if not k.startswith("network.")
        },
        "trained_keys": list(dict.fromkeys(learned)),  # here, or by what this run started from
        "trained": vars(trained),
        # weights of the decoder of which only so many leading input channels are trained
        "trained_inputs": {} if trained.skips else unet.inputs_without_skips(network),
        "plans": plans,
        "input_channels": objective.context.input_channels,
        **vars(progress),
        "cases": cases,
        ANCESTORS: ancestors,
        "about": dict(config.about),
    }
    return {
        **_compose_stock(trainer, network),
        "current_epoch": progress.epoch,
        "init_args": {
            "configuration": trainer.configuration_name,
            "fold": trainer.fold,
            "plans": plans,
            "dataset_json": trainer.dataset_json,
        },
        "trainer_name": type(trainer).__name__,
        "nnssl": {**own, **_describe_run(trainer, config, identity)},
    }


def compose_finetuning(
    trainer: nnUNetTrainer,
    network: nn.Module,
    config: Config,
    identity: Identity,
    epochs: int,
    epoch_losses: Sequence[float],
    weights: Mapping[str, Any],
    labels: Mapping[str, Any] | None,
    cases: Mapping[str, Any] | None,
    average: MomentumCopy | None = None,
    export_average: bool = False,
    start_weights: Mapping[str, Tensor] | None = None,
    history: Mapping[str, list[float | None]] | None = None,
) -> dict[str, Any]:
    """All keys of a stock checkpoint, so that it predicts where nnssl is not installed.

    Args:
        trainer: whose optimiser, logger and plans are stored.
        network: the planned U-Net without wrappers.
        config: the resolved configuration.
        identity: what a resume is compared with.
        epochs: that are done.
        epoch_losses: of the epoch that is under way.
        weights, labels: records of where the weights came from, and of the labelled cases.
        cases: what the weights learn on.
        average: running average of the weights, or a teacher.
        export_average: whether it is the finished model; the last weights then stand under `nnssl`.
        start_weights: towards which the weights decay, if they do.
        history: one number per term of ours and epoch.
    """
    own: dict[str, Any] = {
        "kind": "finetune",
        "trainer": type(trainer).__name__,
        "weights": weights,
        "labels": labels,
        "cases": cases,
        "epoch_losses": epoch_losses,
        "history": history or {},
    }
    if start_weights:
        own["start_weights"] = dict(start_weights)
    exported = network
    if average is not None:
        exported, other = (average.module, network) if export_average else (network, average.module)
        own |= {"other_weights": unet.plain_state_dict(other), "average_exported": export_average}
    return {
        **_compose_stock(trainer, exported),
        "current_epoch": epochs,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": STOCK_TRAINER,
        "nnssl": {**own, **_describe_run(trainer, config, identity)},
    }


def _compose_stock(trainer: nnUNetTrainer, network: nn.Module) -> dict[str, Any]:
    scaler = trainer.grad_scaler
    return {
        "network_weights": unet.plain_state_dict(network),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if scaler is None else scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }


def _describe_run(trainer: nnUNetTrainer, config: Config, identity: Identity) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "identity": identity,
        "dataset": trainer.plans_manager.dataset_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "versions": versions("nnunetv2", "torch"),
    }


def write_resolved_config(output_folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Writes `resolved_config.yaml`, the configuration with every default filled in."""
    path = Path(output_folder) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(make_plain(config), sort_keys=False), encoding="utf-8")
    return path


def restore_pretraining(
    checkpoint: Mapping[str, Any], trainer: nnUNetTrainer, objective: Objective
) -> Progress:
    """Put weights, optimiser and logger of a checkpoint into an initialised trainer.

    Raises:
        ValueError: the objective's state does not fit.
    """
    own = own_part(checkpoint, "pretrain")
    objective.network.load_state_dict(checkpoint["network_weights"])
    missing, unexpected = objective.load_state_dict(own["objective_state"], strict=False)
    lost = [key for key in missing if not key.startswith("network.")]
    if lost or unexpected:
        raise ValueError(f"objective's state does not fit: missing {lost}, unknown {unexpected}")
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema, trainer.current_epoch = checkpoint["_best_ema"], own["epoch"]
    progress = Progress(**{name: own[name] for name in Progress.__dataclass_fields__})

    def rename(terms: Mapping[str, Any]) -> dict[str, Any]:
        return {objective.former_terms.get(name, name): value for name, value in terms.items()}

    epoch_terms = [rename(terms) for terms in progress.epoch_terms]
    return replace(progress, epoch_terms=epoch_terms, history=rename(progress.history))


def restore_average(average: MomentumCopy, network: nn.Module, own: Mapping[str, Any]) -> None:
    """Puts a checkpoint's running average and last weights where they belong.

    Args:
        average: of `network`, which holds the checkpoint's `network_weights`; so does the average.
        network: the planned U-Net.
        own: the checkpoint's part `nnssl`.
    """
    last = network if own["average_exported"] else average.module
    last.load_state_dict(own["other_weights"])


def forget_open_epoch(logger: Any, epoch: int) -> None:
    """Drops what was logged of an unfinished epoch; the logger wants one value per epoch."""
    logging = logger.get_checkpoint()
    logger.load_checkpoint({key: values[:epoch] for key, values in logging.items()})
