"""What a fine-tuning checkpoint holds: a stock nnU-Net model, and our part under `nnssl`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnssl.common.versions import versions
from nnssl.modules import unet

if TYPE_CHECKING:
    from nnssl.training.finetuner import nnSSLFinetuner

STOCK_TRAINER = "nnUNetTrainer"  # prediction builds the network through it, without nnssl


def compose(trainer: nnSSLFinetuner) -> dict[str, Any]:
    """All keys of a stock checkpoint, so that it predicts where nnssl is not installed."""
    scaler = trainer.grad_scaler
    inside_epoch = bool(trainer.epoch_losses)
    return {
        "network_weights": unet.plain_state_dict(trainer.planned_network),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if scaler is None else scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + (0 if inside_epoch else 1),
        "init_args": trainer.my_init_kwargs,
        "trainer_name": STOCK_TRAINER,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
        "nnssl": _own(trainer),
    }


def _own(trainer: nnSSLFinetuner) -> dict[str, Any]:
    assert trainer.config is not None
    return {
        "kind": "finetune",
        "trainer": type(trainer).__name__,
        "config": trainer.config.to_dict(),
        "weights": trainer.weights_record,
        "labels": None if trainer.labelled is None else trainer.labelled.to_dict(),
        "epoch_losses": trainer.epoch_losses,
        "dataset": trainer.plans_manager.dataset_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "versions": versions("nnunetv2", "torch"),
    }


def forget_open_epoch(logger: Any, epoch: int) -> None:
    """Drops what was logged of an unfinished epoch; the logger wants one value per epoch."""
    logging = logger.get_checkpoint()
    logger.load_checkpoint({key: values[:epoch] for key, values in logging.items()})
