"""What objectives share that reconstruct an image from a corrupted one through the U-Net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnssl.common.checks import NotNegative
from nnssl.losses.reconstruction import reconstruction_loss, trivial_losses
from nnssl.modules import unet
from nnssl.modules.cluster_metrics import PICTURES, take_middle_slice
from nnssl.modules.panels import Panel, Row
from nnssl.modules.positions import voxel_positions
from nnssl.objectives.base import Batch, Context, Objective
from nnssl.objectives.position_head import PositionHead


@dataclass(frozen=True)
class Corrupted:
    """A task of reconstruction.

    Attributes:
        image: what the network sees, (B, C, *S).
        target: what it is to give back, (B, C, *S).
        weight: voxels that count, (B, 1, *S); None: all.
        visible: blocks that were kept, (B, 1, *cells) bool, where blocks were hidden.
    """

    image: Tensor
    target: Tensor
    weight: Tensor | None = None
    visible: Tensor | None = None


class ReconstructionObjective(Objective):
    r"""Give back a view from its corrupted version; a subclass says how it is corrupted.

    .. math:: L = \sum_v w_v (f(\tilde x)_v - x_v)^2 / \sum_v w_v

    The last segmentation layer of the U-Net, with as many outputs as the image has channels, is the
    linear head. The log shows what trivial answers would cost (`nnssl.losses.reconstruction`).

    With a `position` weight a second linear head on the same features tells where each voxel lies
    in its volume (`nnssl.objectives.position_head`), and its loss is added with this weight: what
    is hidden can often be read off the surroundings, a position needs anatomy.

    Args:
        skips: whether the decoder sees skip connections.
        position: weight of the positions; 0: no head, and the method's own loss.
    """

    decodes = True
    validated = ("mean_image_loss", "identity_loss")
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {"loss": ("mean_image_loss", "identity_loss")}
    former_terms: ClassVar[Mapping[str, str]] = {
        "restoration_loss": "reconstruction_loss",
        "level_restoration_loss": "level_reconstruction_loss",
    }

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        skips: bool = True,
        position: NotNegative = 0.0,
    ) -> None:
        super().__init__(network, context)
        self.skips, self.position = skips, position
        finest = unet.output_channels(network)[0]
        self.locate = PositionHead(finest, len(context.patch_size)) if position else None

    @classmethod
    def output_channels(cls, input_channels: int) -> int:
        return input_channels

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(None, None, skips=self.skips, output=True)

    def corrupt(self, batch: Batch) -> Corrupted:
        """The task of one batch."""
        raise TypeError(f"{type(self).__name__} does not say how it corrupts images")

    def decode(self, task: Corrupted) -> Tensor:
        """The U-Net's finest features of the corrupted image, (B, F, *S)."""
        features = unet.encode(self.network, task.image)
        return unet.decode(self.network, features, use_skips=self.skips)[-1]

    def reconstruct(self, task: Corrupted) -> Tensor:
        """What the U-Net makes of the corrupted image, (B, C, *S)."""
        return unet.project_out(self.network, self.decode(task))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        task = self.corrupt(batch)
        features = self.decode(task)
        found = unet.project_out(self.network, features)
        loss = reconstruction_loss(found, task.target, task.weight)
        terms = {"loss": loss, **trivial_losses(task.target, task.image, task.weight)}
        return terms if self.locate is None else self._with_positions(terms, batch, features)

    def _with_positions(
        self, terms: dict[str, Tensor], batch: Batch, features: Tensor
    ) -> dict[str, Tensor]:
        """Terms of a reconstruction and of the positions together."""
        assert self.locate is not None
        matrix = batch["views"]["global_0"].matrix
        positions = self.locate(features, voxel_positions(batch, matrix, features.shape[2:]))
        return {
            **terms,
            "loss": terms["loss"] + self.position * positions.loss,
            "reconstruction_loss": terms["loss"].detach(),
            "position_loss": positions.loss.detach(),
            "position_error": positions.error,
            "collapse_loss": terms["collapse_loss"] + self.position * positions.constant,
        }

    @torch.no_grad()
    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """`reconstruction`: target, what the network sees of it, its answer, absolute error."""
        task = self.corrupt(batch)
        found, target = self.reconstruct(task).float(), task.target.float()
        error = (found - target).abs() * (1 if task.weight is None else task.weight)
        images = {"target": target, "seen": task.image, "reconstructed": found}
        rows = [Row(name, _choose_shown(image)) for name, image in images.items()]
        rows.append(Row("error", _choose_shown(error), "absolute error (standard deviations)"))
        return {"reconstruction": Panel(rows, batch["identifier"])}


def _choose_shown(image: Tensor) -> Tensor:
    return take_middle_slice(image[:PICTURES, 0].float())
