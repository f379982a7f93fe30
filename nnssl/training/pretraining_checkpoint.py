"""What a pre-training checkpoint holds, and how a run takes it up again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from nnssl.common.versions import versions
from nnssl.config import Config
from nnssl.finetuning.weights import load, match
from nnssl.modules import unet
from nnssl.nnunet.checkpoint import own_part, plain, read_checkpoint
from nnssl.training.history import History

if TYPE_CHECKING:
    from nnssl.training.pretrainer import nnSSLPretrainer

LEAST_SHARE = 0.5  # of the wanted parameters, for `training.initial_weights`
NO_IMAGES: dict[str, Any] = {"images": {}, "left_out": {}}  # of runs of an older version


def compose(trainer: nnSSLPretrainer) -> dict[str, Any]:
    """A stock nnU-Net checkpoint of the planned U-Net, and everything else under `nnssl`."""
    objective = trainer.objective
    assert trainer.config is not None
    scaler = trainer.grad_scaler
    stock = {
        "network_weights": unet.plain_state_dict(objective.network),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if scaler is None else scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch,
        "init_args": {
            "configuration": trainer.configuration_name,
            "fold": trainer.fold,
            "plans": trainer.plans_manager.plans,
            "dataset_json": trainer.dataset_json,
        },
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": None,
    }
    own = {
        "kind": "pretrain",
        "objective": trainer.config.chosen("objective")[0],
        "objective_state": _own_state(objective),
        "trained_keys": unet.trained_keys(objective.network, objective.trained),
        "trained": vars(objective.trained),
        "trained_inputs": _trained_inputs(objective),
        "config": trainer.config.to_dict(),
        "plans": trainer.plans_manager.plans,
        "dataset": trainer.plans_manager.dataset_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "input_channels": trainer.num_input_channels,
        "step": trainer.step,
        "epoch": trainer.current_epoch,
        "epoch_terms": trainer.epoch_terms,
        "skipped_steps": trainer.skipped_steps,
        "history": trainer.history.values,
        "finished": trainer.step >= trainer.settings.steps,
        "cases": {
            "train": [case.identifier for case in trainer.train_cases],
            "left_out": [case.identifier for case in trainer.val_cases],
            "unlabelled": trainer.unlabelled.record(),
        },
        "about": dict(trainer.config.about),
        "versions": versions("nnunetv2", "torch"),
    }
    return {**stock, "nnssl": own}


def _trained_inputs(objective: Any) -> dict[str, int]:
    """Weights of the decoder of which only so many leading input channels are trained."""
    return {} if objective.trained.skips else unet.inputs_without_skips(objective.network)


def _own_state(objective: Any) -> dict[str, Any]:
    """State of the objective without the U-Net, which is stored once under `network_weights`."""
    return {k: v for k, v in objective.state_dict().items() if not k.startswith("network.")}


def stored_config(checkpoint: Mapping[str, Any]) -> Config:
    return Config.from_dict(own_part(checkpoint, "pretrain")["config"])


def with_changes(stored: Config, today: Config, may_change: Collection[str]) -> Config:
    """The stored configuration with today's values where a resume may change them.

    Args:
        stored: configuration of the checkpoint.
        today: configuration of today's YAML file and overrides.
        may_change: knobs (`training.num_epochs`) and whole sections (`probe`).
    """
    merged, current = stored.to_dict(), today.sections
    for path in may_change:
        section, _, knob = path.partition(".")
        if not knob and section in current:
            merged["sections"][section] = current[section]
        elif knob in current.get(section, {}):
            merged["sections"][section][knob] = current[section][knob]
    return Config.from_dict(plain(merged))


def restore(trainer: nnSSLPretrainer, checkpoint: Mapping[str, Any]) -> None:
    """Put weights, optimiser, counters and history of a checkpoint into an initialised trainer.

    Raises:
        ValueError: the objective's state does not fit, or an image without label that the run was
            trained on is gone.
    """
    own = own_part(checkpoint, "pretrain")
    _same_images(trainer, own["cases"].get("unlabelled", NO_IMAGES))
    objective = trainer.objective
    objective.network.load_state_dict(checkpoint["network_weights"])
    missing, unexpected = objective.load_state_dict(own["objective_state"], strict=False)
    lost = [key for key in missing if not key.startswith("network.")]
    if lost or unexpected:
        raise ValueError(f"objective's state does not fit: missing {lost}, unknown {unexpected}")
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.current_epoch, trainer.step = own["epoch"], own["step"]
    trainer.epoch_terms = list(own["epoch_terms"])
    trainer.skipped_steps = own["skipped_steps"]
    trainer.history = History(own["history"])


def _same_images(trainer: nnSSLPretrainer, record: Mapping[str, Any]) -> None:
    """A resumed run goes on with the images without labels that it began with, whatever has been
    added since; their number may decide the shape of the objective, so it is built again."""
    if trainer.unlabelled.record()["images"] == record["images"]:
        return
    trainer.print_to_log_file("Resume: other images without labels are there than when it began")
    trainer.recorded_unlabelled = record
    trainer.initialize()


def load_initial(trainer: nnSSLPretrainer, file: str) -> None:
    """Start from the weights of another run: the parts of the U-Net that this objective trains.

    Raises:
        ValueError: if less than half of them fits these plans.
    """
    network = trainer.objective.network
    wanted = unet.trained_keys(network, trainer.objective.trained)
    checkpoint = read_checkpoint(file)
    inputs = checkpoint.get("nnssl", {}).get("trained_inputs", {})
    source, target = checkpoint["network_weights"], network.state_dict()
    transfer = match(source, target, wanted, trained_inputs=inputs)
    transfer.require(LEAST_SHARE)
    load(network, transfer)
    trainer.print_to_log_file(f"Initial weights from {file}:\n{transfer.table()}")
