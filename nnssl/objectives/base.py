"""The contract between an objective (what is learned) and the pre-trainer (how it is run)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from nnssl.modules import unet
from nnssl.modules.unet import Trained

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What the pre-trainer knows when it builds an objective.

    Attributes:
        input_channels: channels C of the planned network's input.
        patch_size: size of a full-size view in voxels, array order, length d.
        spacing: voxel size in millimetres, array order, length d.
        samples: raw patches B per step and rank.
        partitions: parts S into which a volume's axis is divided.
        datasets: number of datasets of origin among the training cases.
        cases: number of training cases.
    """

    input_channels: int
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    samples: int
    partitions: int = 4
    datasets: int = 1
    cases: int = 1


class Objective(nn.Module):
    """A pretext task: holds the planned U-Net and its own heads, and turns a batch into a loss.

    A subclass declares its knobs as keyword-only arguments of its constructor, names in class
    attributes what it needs, and implements `forward`. The whole objective is the pre-trainer's
    `network`, so the optimiser, AMP and DDP see every learnable part.

    Class attributes:
        sampling: smallest sampling that makes sense, `"random"` or `"partitioned"`.
        least_samples: raw patches per step that it needs before views may grow; None: as planned.
        dense_targets: names of the integer maps that travel with the image.
        default_views: view groups used where the YAML names none (group name -> knobs).
        decodes: whether the decoder runs; the budget counts its activations then.
        best: criterion of `checkpoint_best`; None where the lowest loss is no sign of quality.
    """

    sampling: ClassVar[Literal["random", "partitioned"]] = "random"
    least_samples: ClassVar[int | None] = None
    dense_targets: ClassVar[tuple[str, ...]] = ()
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 1}}
    decodes: ClassVar[bool] = False
    best: ClassVar[Literal["val_loss"] | None] = "val_loss"

    def __init__(self, network: nn.Module, context: Context) -> None:
        super().__init__()
        unet.supported(network)
        self.network = network
        self.context = context

    @classmethod
    def output_channels(cls, input_channels: int) -> int | None:
        """Channels of the U-Net's last layer, or None where the planned number may stay."""
        return None

    @property
    def trained(self) -> Trained:
        """Parts of the U-Net that this objective trains; everything else is frozen."""
        return Trained(encoder_stages=None, decoder_levels=0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Map a batch with `views` to `loss` (scalar) and detached scalar terms for the log."""
        raise TypeError(f"{type(self).__name__} has no forward pass")

    def after_step(self, batch: Batch, progress: float) -> None:
        """Update banks, targets and running means, equally on all ranks.

        Args:
            batch: the batch of the step that was just taken.
            progress: share of the training that is done, 0 to 1.
        """

    def collapse_loss(self) -> float | None:
        """Loss of a network that maps everything to one point, or None if not defined."""
        return None

    def illustrate(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures for the output folder: name -> (rows, columns, H, W) of grey values."""
        return {}
