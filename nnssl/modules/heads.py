"""Projectors and predictors."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from nnssl.common.distributed import world_size

Normalisation = Literal["none", "batch", "layer"]


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: (B, in_features) -> (B, out_features).

    Under several processes `nn.SyncBatchNorm.convert_sync_batchnorm` reaches the batch
    normalisation.

    Args:
        in_features: F of the input.
        hidden: features of every layer but the last.
        out_features: D of the output.
        layers: number of linear layers; 1 is a single linear map.
        normalisation: what follows each hidden linear layer (which then has no bias).
        last_normalisation: whether the same follows the last one.

    Raises:
        ValueError: no layer, an unknown normalisation, nothing to normalise the last layer with;
            in `forward`: a batch of one image for batch normalisation in training.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        layers: int = 2,
        normalisation: Normalisation = "batch",
        last_normalisation: bool = False,
    ) -> None:
        _check(layers, normalisation, last_normalisation)
        features = [in_features, *[hidden] * (layers - 1), out_features]
        parts: list[nn.Module] = []
        for number in range(layers):
            last = number == layers - 1
            kind = normalisation if last_normalisation or not last else "none"
            parts += _layer(features[number], features[number + 1], kind)
            parts += [] if last else [nn.ReLU(inplace=True)]
        super().__init__(*parts)
        self.needs_several = normalisation == "batch" and (layers > 1 or last_normalisation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        if self.training and self.needs_several and len(x) * world_size() == 1:
            raise ValueError(
                "batch size: found 1 embedding for batch normalisation, allowed: 2 or more. "
                "Raise the batch size or the number of views, or set normalisation to layer."
            )
        output: Tensor = super().forward(x)
        return output


def _layer(in_features: int, out_features: int, kind: Normalisation) -> list[nn.Module]:
    linear = nn.Linear(in_features, out_features, bias=kind == "none")
    if kind == "none":
        return [linear]
    return [linear, (nn.BatchNorm1d if kind == "batch" else nn.LayerNorm)(out_features)]


def _check(layers: int, normalisation: str, last_normalisation: bool) -> None:
    if layers < 1:
        raise ValueError(f"layers: found {layers}, allowed: 1 or more")
    allowed = get_args(Normalisation)
    if normalisation not in allowed:
        raise ValueError(f"normalisation: found {normalisation!r}, allowed: {', '.join(allowed)}")
    if last_normalisation and normalisation == "none":
        raise ValueError(
            "last_normalisation: found True with normalisation 'none', allowed: with batch or layer"
        )
