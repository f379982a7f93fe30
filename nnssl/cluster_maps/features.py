"""Features of every voxel: handcrafted, of our own encoder, or of a vision transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from nnssl.modules import unet
from nnssl.nnunet.checkpoint import own_part, read_checkpoint, speaking_of
from nnssl.nnunet.planned_network import build_network

Window = tuple[slice, slice, slice]
Upsampling = Literal["linear", "bilateral"]
SLAB = 8  # slices that are filtered at once
REACH = 4.0  # sigmas at which scipy cuts a Gaussian off
CELL = 8  # voxels per cell of the default stage
SIGMA_CELLS = 0.7  # of the Gaussian over distance, in cells
SIGMA_GUIDE = 0.5  # of the Gaussian over intensity, in standard deviations of the guide


class HandcraftedFeatures:
    """Smoothed intensity, gradient magnitude and Laplacian per channel and scale, and position.

    Args:
        scales: sigmas in voxels of the finest axis; in 2D within the slice.
        spacing: millimetres per voxel on the image's own axes (2 or 3).
        position: weight of the three coordinates, each from -1 to 1 over the volume.
    """

    def __init__(self, scales: Sequence[float], spacing: Sequence[float], position: float) -> None:
        finest = min(spacing)
        per_axis = [finest / s for s in spacing]
        flat = [0.0] * (3 - len(per_axis))
        self.sigmas = [[*flat, *(scale * ratio for ratio in per_axis)] for scale in scales]
        self.position = position

    def weights(self, features: int) -> np.ndarray:
        """Weight of each of the F features after standardisation, (F,)."""
        return np.array([1.0] * (features - 3) + [self.position] * 3)

    def windows(self, image: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """Slabs of the volume with their features.

        Args:
            image: (C, Z, Y, X) float32.

        Yields:
            the slab's place and features (F, z, Y, X).
        """
        depth = image.shape[1]
        halo = int(np.ceil(REACH * max(sigma[0] for sigma in self.sigmas)))
        for begin in range(0, depth, SLAB):
            end = min(begin + SLAB, depth)
            low, high = max(0, begin - halo), min(depth, end + halo)
            inner = slice(begin - low, end - low)
            maps = [m[inner] for channel in image[:, low:high] for m in self._filter(channel)]
            axes = [(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in image.shape[1:]]
            axes[0] = axes[0][begin:end]
            position = np.broadcast_arrays(*np.meshgrid(*axes, indexing="ij", copy=False))
            yield (slice(begin, end), slice(None), slice(None)), np.stack([*maps, *position])

    def _filter(self, channel: np.ndarray) -> Iterator[np.ndarray]:
        axes = [axis for axis in range(3) if self.sigmas[0][axis] > 0]
        for sigma in self.sigmas:
            smooth = ndimage.gaussian_filter(channel, sigma)
            orders = {a: [np.eye(3, dtype=int)[a] * n for n in (1, 2)] for a in axes}
            first = [ndimage.gaussian_filter(channel, sigma, orders[a][0]) for a in axes]
            second = [ndimage.gaussian_filter(channel, sigma, orders[a][1]) for a in axes]
            yield smooth
            yield np.sqrt(sum((sigma[a] * d) ** 2 for a, d in zip(axes, first, strict=True)))
            yield sum(sigma[a] ** 2 * d for a, d in zip(axes, second, strict=True))


class EncoderFeatures:
    """A stage of a pre-trained nnSSL encoder, upsampled to voxels.

    Args:
        checkpoint: file of a pre-training run.
        stage: encoder stage, None: the deepest with at most 8 voxels per cell and axis.
        upsampling: how cells become voxels.
        patch: planned patch, the window of a 3D network; a 2D one sees whole slices.
    """

    def __init__(
        self, checkpoint: str, stage: int | None, upsampling: Upsampling, patch: Sequence[int]
    ) -> None:
        self.network = _read_network(checkpoint).eval()
        totals = np.cumprod(unet.strides(self.network), 0).max(1)
        self.stage = max(0, int((totals <= CELL).sum()) - 1) if stage is None else stage
        self.upsampling, self.patch = upsampling, tuple(patch)

    def weights(self, features: int) -> np.ndarray:
        return np.ones(features)

    @torch.no_grad()
    def windows(self, image: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        flat = len(self.patch) == 2
        for window in windows(image.shape[1:], self.patch):
            index = (slice(None), *window)
            part = torch.from_numpy(image)[index]
            features = self._compute_features(part.movedim(0, 1) if flat else part[None])
            yield window, (features.movedim(0, 1) if flat else features[0]).numpy()

    def _compute_features(self, part: Tensor) -> Tensor:
        """(B, C, *S) -> (B, F, *S); what the strides need is added at the far ends."""
        size, stride = part.shape[2:], unet.total_stride(self.network)
        grown = [max(math.ceil(n / s), 2) * s for n, s in zip(size, stride, strict=True)]
        pads = [p for n, g in zip(size, grown, strict=True) for p in (g - n, 0)][::-1]
        padded = functional.pad(part, pads)
        features = unet.encode(self.network, padded)[self.stage]
        voxels = upsample(features, padded, self.upsampling)
        for axis, length in enumerate(size):
            voxels = voxels.narrow(axis + 2, 0, length)
        return voxels


class TransformerFeatures:
    """Tokens of a vision transformer (DINO) on axial slices, upsampled to pixels.

    Args:
        model: timm's name.
        checkpoint: local file of the weights, None: timm's hub.
        size: longer side of a slice as the network sees it.
        upsampling: how tokens become pixels.

    Raises:
        ValueError: timm is not installed, or the weights cannot be had.
    """

    def __init__(
        self, model: str, checkpoint: str | None, size: int, upsampling: Upsampling
    ) -> None:
        self.network = _read_transformer(model, checkpoint)
        self.size, self.upsampling = size, upsampling
        self.token = int(self.network.patch_embed.patch_size[0])
        config = self.network.pretrained_cfg
        self.mean, self.std = (
            torch.tensor(config.get(key, (0.5,) * 3)).reshape(1, 3, 1, 1) for key in ("mean", "std")
        )

    def weights(self, features: int) -> np.ndarray:
        return np.ones(features)

    @torch.no_grad()
    def windows(self, image: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        low, high = np.percentile(image[0], [0.5, 99.5]).tolist()
        grey = torch.from_numpy(image[:1].clip(low, high) - low) / max(high - low, 1e-6)
        for window in windows(image.shape[1:], image.shape[2:]):
            index = (slice(None), *window)
            part = grey[index].movedim(0, 1)  # (1, 1, Y, X)
            features = upsample(self._compute_tokens(part), part, self.upsampling)
            yield window, features.movedim(0, 1).numpy()

    def _compute_tokens(self, part: Tensor) -> Tensor:
        """(1, 1, Y, X) in [0, 1] -> (1, F, y, x)."""
        scale = self.size / max(part.shape[2:])
        grid = [max(1, round(n * scale / self.token)) for n in part.shape[2:]]
        size = [n * self.token for n in grid]
        seen = functional.interpolate(part, size, mode="bilinear").expand(1, 3, *size)
        tokens = self.network.forward_features((seen - self.mean) / self.std)
        tokens = tokens[:, self.network.num_prefix_tokens :]
        return tokens.reshape(1, *grid, -1).movedim(-1, 1)


def windows(shape: Sequence[int], patch: Sequence[int]) -> Iterator[Window]:
    """Windows that cover a volume: every slice for 2D; else the patch, moved by its size."""
    size = (1, *shape[1:]) if len(patch) == 2 else tuple(patch)
    begins = [
        [min(begin, max(0, n - s)) for begin in range(0, n, s)]
        for n, s in zip(shape, size, strict=True)
    ]
    for begin in product(*begins):
        ends = [min(b + s, n) for b, s, n in zip(begin, size, shape, strict=True)]
        yield tuple(slice(b, e) for b, e in zip(begin, ends, strict=True))  # type: ignore[misc]


def upsample(features: Tensor, guide: Tensor, kind: Upsampling) -> Tensor:
    """Features at the guide's resolution.

    `bilateral`: every voxel takes the mean of the cells around it, weighted by Gaussians of their
    distance and of the difference between the voxel's and the cell's mean intensity.

    Args:
        features: (B, F, *s).
        guide: images (B, C, *S).
        kind: `linear` or `bilateral`.

    Returns:
        (B, F, *S) float32.

    Reference:
        Kopf, Cohen, Lischinski, Uyttendaele: Joint bilateral upsampling. ACM Transactions on
        Graphics 26, 2007. (FeatUp, arXiv:2403.10516, learns the weights of the same form.)
    """
    features, guide = features.float(), guide.float()
    if kind == "linear":
        mode = "bilinear" if guide.ndim == 4 else "trilinear"
        return functional.interpolate(features, guide.shape[2:], mode=mode)
    cells = features.shape[2:]
    coarse = functional.interpolate(guide, cells, mode="area")
    spread = guide.std().clamp_min(1e-6) * SIGMA_GUIDE
    places = [  # where the voxels lie, in cells
        (torch.arange(n, device=guide.device) + 0.5) * m / n - 0.5
        for n, m in zip(guide.shape[2:], cells, strict=True)
    ]
    total = torch.zeros(*features.shape[:2], *guide.shape[2:], device=guide.device)
    weights = torch.zeros(len(guide), 1, *guide.shape[2:], device=guide.device)
    for offset in product((-1, 0, 1), repeat=len(cells)):
        index = [
            (place.round().long() + step).clamp(0, n - 1)
            for place, step, n in zip(places, offset, cells, strict=True)
        ]
        apart = torch.meshgrid(*(p - i for p, i in zip(places, index, strict=True)), indexing="ij")
        distance = torch.stack(apart).square().sum(0)
        difference = (guide - _take(coarse, index)).square().sum(1, keepdim=True) / spread**2
        weight = torch.exp(-0.5 * (distance / SIGMA_CELLS**2 + difference))
        total += weight * _take(features, index)
        weights += weight
    linear = upsample(features, guide, "linear")
    return torch.where(weights > 1e-6, total / weights.clamp_min(1e-6), linear)


def _take(maps: Tensor, index: Sequence[Tensor]) -> Tensor:
    for axis, chosen in enumerate(index):
        maps = maps.index_select(axis + 2, chosen)
    return maps


def _read_network(checkpoint: str) -> nn.Module:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = read_checkpoint(checkpoint)
    with speaking_of(checkpoint):
        own, weights = own_part(content, "pretrain"), content["network_weights"]
        manager = PlansManager(own["plans"]).get_configuration(own["configuration"])
        outputs = len(weights["decoder.seg_layers.0.weight"])
        network = build_network(manager, own["input_channels"], outputs)
        network.load_state_dict(weights)
    return network


def _read_transformer(model: str, checkpoint: str | None) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError("source dino needs the package timm: pip install timm") from error
    try:
        network = timm.create_model(
            model, pretrained=checkpoint is None, num_classes=0, dynamic_img_size=True
        )
        if checkpoint is not None:
            _load_transformer(network, checkpoint)
    except Exception as error:  # the hub, the file and the name fail in many ways
        raise ValueError(
            f"source dino: the weights of {model} cannot be had ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}). Offline, name a local file of "
            "them with --checkpoint, or use --source handcrafted, which needs no weights."
        ) from error
    return network.eval()


def _load_transformer(network: Any, file: str) -> None:
    """Fill a vision transformer of timm from a file, of which no code is run.

    Raises:
        ValueError: the file lacks tensors of the network.
    """
    from timm.models import load_state_dict
    from timm.models.vision_transformer import checkpoint_filter_fn

    weights = checkpoint_filter_fn(load_state_dict(file, weights_only=True), network)
    missing = network.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ValueError(
            f"{file} lacks {len(missing)} of {len(network.state_dict())} tensors, {missing[0]} for "
            "instance: it holds another network"
        )
