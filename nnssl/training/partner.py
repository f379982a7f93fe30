"""Cross pseudo supervision: a second network that learns beside the first, and labels for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnssl.data.supervised_batches import seed_everything
from nnssl.finetuning.freezing import freeze_or_release
from nnssl.modules.cpu_bfloat16 import float32_where_shallow
from nnssl.modules.unet import plain_state_dict
from nnssl.nnunet.planned_network import build_network
from nnssl.training.finetuner import nnSSLFinetuner

PLACES = ("network", "optimizer", "lr_scheduler", "grad_scaler")


class Partner:
    """A second network, with optimiser and gradient scaler of its own.

    It begins with the transferred weights of the first; all else is drawn anew, so that the two
    make different mistakes.

    Args:
        trainer: whose network, optimiser and scaler it stands beside.

    Attributes:
        planned_network: the U-Net without wrappers.

    Reference:
        Chen, Yuan, Zeng, Wang: Semi-supervised semantic segmentation with cross pseudo supervision.
        CVPR 2021, arXiv:2106.01226.
    """

    def __init__(self, trainer: nnSSLFinetuner) -> None:
        self._trainer = trainer
        self.planned_network = _draw_anew(trainer)
        self._own: dict[str, Any] = {
            "network": _wrap(self.planned_network, trainer.network),
            "grad_scaler": deepcopy(trainer.grad_scaler),
            "optimizer": None,
            "lr_scheduler": None,
        }
        with self.in_place():
            trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Lets the trainer have the partner's network and optimiser in the place of the first."""
        first = {name: getattr(self._trainer, name) for name in PLACES}
        self._put(self._own)
        try:
            yield
        finally:
            self._own = {name: getattr(self._trainer, name) for name in PLACES}
            self._put(first)

    def _put(self, parts: Mapping[str, Any]) -> None:
        for name, part in parts.items():
            setattr(self._trainer, name, part)

    def begin_epoch(self) -> None:
        """What the first network's epoch begins with: mode, learning rates, frozen parts."""
        trainer, optimizer = self._trainer, self._own["optimizer"]
        self._own["network"].train()
        self._own["lr_scheduler"].step(trainer.current_epoch)
        begun = bool(trainer.epoch_losses)
        freeze_or_release(self.planned_network, optimizer, trainer.current_epoch, begun)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        scaler = self._own["grad_scaler"]
        return {
            "network_weights": plain_state_dict(self.planned_network),
            "optimizer_state": self._own["optimizer"].state_dict(),
            "grad_scaler_state": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Puts back what `to_dict` gave."""
        self.planned_network.load_state_dict(stored["network_weights"])
        self._own["optimizer"].load_state_dict(stored["optimizer_state"])
        if self._own["grad_scaler"] is not None and stored["grad_scaler_state"] is not None:
            self._own["grad_scaler"].load_state_dict(stored["grad_scaler_state"])


def _draw_anew(trainer: nnSSLFinetuner) -> nn.Module:
    """A planned U-Net with new weights but for those that were transferred."""
    seed_everything(trainer.settings.seed, "partner")
    network = build_network(
        trainer.configuration_manager,
        trainer.num_input_channels,
        trainer.label_manager.num_segmentation_heads,
        trainer.enable_deep_supervision,
    )
    first, kept = plain_state_dict(trainer.planned_network), set(trainer.weights_record["loaded"])
    network.load_state_dict({k: v for k, v in first.items() if k in kept}, strict=False)
    if trainer.device.type == "cpu":
        float32_where_shallow(network)
    return network.to(trainer.device)


def _wrap(network: nn.Module, like: nn.Module) -> nn.Module:
    """The network in the wrappers that another one has."""
    if isinstance(like, DistributedDataParallel):
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(_wrap(network, like.module), device_ids=like.device_ids)
    if isinstance(like, OptimizedModule):
        network.compile()
    return network
