"""The polynomial schedule of nnU-Net, per parameter group, with warm-up."""

from __future__ import annotations

from torch.optim import Optimizer


class PartSchedule:
    """Learning rate of each group as a function of the epoch e.

        lr(e) = initial_lr * (1 - e / epochs)^0.9 * min(1, (e + 1) / (warmup_epochs + 1)) * lr_scale

    and 0 while e < frozen_epochs. `lr_scale` and `frozen_epochs` stand in the groups (see
    `parameter_groups`). nnU-Net's own schedulers give every group the same rate; without warm-up
    and with scale 1 the values are exactly those of its `PolyLRScheduler`.

    Args:
        optimizer: its groups are written at every `step`.
        initial_lr: rate at scale 1 before decay.
        epochs: length of the run.
        warmup_epochs: epochs below the full rate.
        exponent: of the decay.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        epochs: int,
        warmup_epochs: int = 0,
        exponent: float = 0.9,
    ) -> None:
        self.optimizer = optimizer
        self.initial_lr = initial_lr
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.exponent = exponent
        self.step(0)

    def step(self, epoch: int) -> None:
        """Sets the rates of an epoch."""
        base = self.rate(epoch)
        for group in self.optimizer.param_groups:
            frozen = epoch < group.get("frozen_epochs", 0)
            group["lr"] = 0.0 if frozen else base * group.get("lr_scale", 1.0)

    def rate(self, epoch: int) -> float:
        """Rate of a group with scale 1."""
        decayed: float = self.initial_lr * (1 - epoch / self.epochs) ** self.exponent
        return decayed * min(1.0, (epoch + 1) / (self.warmup_epochs + 1))

    def get_last_lr(self) -> list[float]:
        """Current rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]
