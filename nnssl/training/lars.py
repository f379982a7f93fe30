"""LARS: stochastic gradient descent whose step is scaled layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class LARS(torch.optim.SGD):
    r"""Layer-wise adaptive rates: :math:`g \leftarrow \eta \frac{|w|}{|g| + \lambda |w|}
    (g + \lambda w)`, then a step with momentum.

    Vectors (biases and normalisations) are neither scaled nor decayed, as in BYOL; where weight or
    gradient is 0, the gradient is taken as it is.

    Args:
        parameters: what is trained.
        lr: learning rate; 0.1 to 1 is usual here.
        weight_decay: lambda.
        momentum: of the scaled gradient.
        trust: eta.

    Reference:
        You, Gitman, Ginsburg: Large batch training of convolutional networks. 2017,
        arXiv:1708.03888.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(parameters, lr, momentum=momentum)
        self.decay, self.trust = weight_decay, trust

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Scales the gradients in place, then takes the step."""
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.grad is not None and parameter.ndim > 1:
                self._scale(parameter, parameter.grad)
        return super().step(closure)

    def _scale(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        size, steepness = weight.norm(), gradient.norm()
        scale = self.trust * size / (steepness + self.decay * size)
        learns = (size > 0) & (steepness > 0)
        gradient.add_(weight * learns, alpha=self.decay)
        gradient.mul_(torch.where(learns, scale, 1.0))
