"""The contract between an objective (what is learned) and the pre-trainer (how it is run)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nnssl.common.checks import checked
from nnssl.modules import unet
from nnssl.modules.panels import Panel
from nnssl.modules.unet import Trained

Batch = Mapping[str, Any]
SHARED = "shared_maps"  # key of a batch that several objectives see


@dataclass(frozen=True)
class Context:
    """What the pre-trainer knows when it builds an objective.

    Attributes:
        input_channels: channels C of the planned network's input.
        patch_size: size of a full-size view in voxels, array order, length d.
        spacing: voxel size in millimetres, array order, length d.
        partitions: parts S into which a volume's axis is divided.
        datasets: number of datasets of origin, which a batch numbers from 0 on.
    """

    input_channels: int
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    partitions: int = 4
    datasets: int = 1


@dataclass(frozen=True)
class DenseTargets:
    """Integer maps that an objective wants beside every image, cut and moved as the image is.

    Attributes:
        name: of the maps' folder, and the key of `View.dense_targets`.
        kind: who makes them, a name in `nnssl.cluster_maps.DENSE_TARGETS`.
        classes: number K of values, from 0 on; -1 is unknown.
    """

    name: str
    kind: str
    classes: int


class Objective(nn.Module):
    """A pretext task: holds the planned U-Net and its own heads, and turns a batch into a loss.

    A subclass declares its knobs as keyword-only arguments of its constructor (whose annotations
    are checked at every call), names in class attributes what it needs and shows, and implements
    `forward`. The whole objective is the pre-trainer's `network`, so the optimiser, AMP and DDP
    see every learnable part.

    Class attributes:
        sampling: smallest sampling that makes sense, `"random"` or `"partitioned"`.
        least_samples: raw patches per step that it needs before views may grow; None: as planned.
        default_views: view groups used where the YAML names none (group name -> knobs).
        decodes: whether the decoder runs; the budget counts its activations then.
        shares: whether the network sees the views as they are, through `encode_views` and
            `decode_views`, so that the parts of a joint objective can share what it computes.
        best: criterion of `checkpoint_best`; None where the lowest loss is no sign of quality.
        validated: terms that are also logged for the validation, as `val_<term>`.
        panels: title -> terms that share a panel of `progress.png` (`loss`: beside the losses);
            every other term gets a panel of its own.
        audited: whether it must be at chance where nothing is to be seen (terms `accuracy` and
            `chance`); `nnssl.probe.shortcuts` looks.
        former_terms: names of terms in the checkpoints of older versions -> today's.

    Attributes:
        dense_targets: integer maps that travel with the image; the constructor may set them.
        cluster_count: number K of clusters that `clusters` tells apart; None: it has none.
    """

    sampling: ClassVar[Literal["random", "partitioned"]] = "random"
    least_samples: ClassVar[int | None] = None
    default_views: ClassVar[Mapping[str, Mapping[str, Any]]] = {"global": {"count": 1}}
    decodes: ClassVar[bool] = False
    shares: ClassVar[bool] = False
    best: ClassVar[Literal["val_loss"] | None] = "val_loss"
    validated: ClassVar[tuple[str, ...]] = ()
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    audited: ClassVar[bool] = False
    former_terms: ClassVar[Mapping[str, str]] = {}

    dense_targets: tuple[DenseTargets, ...] = ()
    cluster_count: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            checked(cls)

    def __init__(self, network: nn.Module, context: Context) -> None:
        super().__init__()
        unet.check_network(network)
        self.network = network
        self.context = context

    @classmethod
    def output_channels(cls, input_channels: int) -> int | None:
        """Channels of the U-Net's last layer, or None where the planned number may stay."""
        return None

    @classmethod
    def count_inputs(
        cls, network: nn.Module, size: Sequence[int], knobs: Mapping[str, Any]
    ) -> float:
        """Voxels that the network sees per voxel of a view of this size, for the budget."""
        return 1.0

    def describe(self) -> str:
        """What it made of patch and plan, as a line for the log; empty where that goes without."""
        return ""

    @classmethod
    def count_decoded(cls, views: int) -> int:
        """Of so many views, how many go through the decoder."""
        return views if cls.decodes else 0

    @property
    def trained(self) -> Trained:
        """Parts of the U-Net that this objective trains; everything else is frozen."""
        return Trained(encoder_stages=None, decoder_levels=0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Map a batch with `views` to `loss` (scalar) and detached scalar terms for the log.

        One of the terms is `collapse_loss`, where that is defined: the loss of a network that maps
        everything to one point.
        """
        raise TypeError(f"{type(self).__name__} has no forward pass")

    def encode_views(self, batch: Batch) -> list[Tensor]:
        """Outputs of all encoder stages for all views, (V * B, F, *S) each."""
        maps = _shared_maps(batch)
        if "encoder" not in maps:
            images = torch.cat([view.image for view in batch["views"].values()])
            maps["encoder"] = unet.encode(self.network, images)
        return maps["encoder"]

    def decode_views(
        self, batch: Batch, levels: int | None = None, use_skips: bool = True
    ) -> list[Tensor]:
        """Outputs of the decoder stages for all views, see `unet.decode`."""
        maps, key = _shared_maps(batch), "decoder" if use_skips else "decoder without skips"
        skips, done = self.encode_views(batch), maps.get(key, [])
        outputs = unet.decode(self.network, skips, levels, use_skips, done)
        maps[key] = max(outputs, done, key=len)
        return outputs

    def after_step(self, batch: Batch, progress: float) -> None:
        """Update banks, targets and running means, equally on all ranks.

        Args:
            batch: the batch of the step that was just taken.
            progress: share of the training that is done, 0 to 1.
        """

    def after_epoch(self) -> None:
        """Update what changes once per epoch, equally on all ranks; validation comes after it."""

    def clusters(self, image: Tensor) -> Tensor:
        """Cluster of every voxel of images (B, C, *S), (B, *S) int64: the probe compares them with
        labels."""
        raise TypeError(f"{type(self).__name__} has no clusters")

    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """Pictures for the output folder, by name."""
        return {}


def _shared_maps(batch: Batch) -> dict[str, list[Tensor]]:
    """Where the parts of a joint objective find what one of them computed; else nowhere."""
    shared: dict[bool, dict[str, list[Tensor]]] = batch.get(SHARED, {})
    return shared.setdefault(torch.is_grad_enabled(), {})
