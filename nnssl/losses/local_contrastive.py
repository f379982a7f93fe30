"""Local contrast: a region of a map agrees with itself in another map, not with its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def local_contrastive_loss(
    embeddings: Tensor,
    pairs: Tensor,
    neighbours: Tensor,
    temperature: float,
    valid: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Mean over pairs of maps (p, q) and regions r, and the share of them that is right.

    .. math:: \ell = -\log \frac{e^{s(z^p_r, z^q_r)}}{e^{s(z^p_r, z^q_r)}
        + \sum_{n \in N(r)} e^{s(z^p_r, z^p_n)} + \sum_{n \in N(r)} e^{s(z^p_r, z^q_n)}},
        \quad s(a, b) = \cos(a, b) / \tau

    The negatives of a region are its neighbours N(r) in both maps. With equal embeddings every term
    is `ln(1 + 2 |N(r)|)`. A term is right where the positive is nearer than every negative. Over
    several processes as `contrastive_loss`. Computed in float32, under autocast too.

    Args:
        embeddings: z, (M, R, D): R regions of M maps.
        pairs: (M, M) weights >= 0 of the pairs of maps (p, q), row p the anchor, zero diagonal.
        neighbours: (R, N) int64, N(r) in row r.
        temperature: divisor of the cosine similarity, above 0.
        valid: (M, R) bool, which regions a map shows; the others are no anchor, no positive and no
            negative. None: all.
        rows: begin and end (exclusive) of the maps whose anchors count, default all.

    Returns:
        Loss and share, scalars, float32. Both are 0 where no pair shows a region in common.

    Raises:
        ValueError: shapes that do not fit.

    Reference:
        Chaitanya, Erdil, Karani, Konukoglu: Contrastive learning of global and local features for
        medical image segmentation with limited annotations. NeurIPS 2020, arXiv:2006.10511.

    Differs from the paper:
        The sum is divided by the number of terms; the published code divides by the number of
        regions and of images, and takes L^D in one direction only.
    """
    count, regions = embeddings.shape[:2]
    if tuple(pairs.shape) != (count, count) or len(neighbours) != regions:
        raise ValueError(
            f"pairs, neighbours: found {tuple(pairs.shape)}, {tuple(neighbours.shape)}, allowed: "
            f"({count}, {count}) and {regions} rows for embeddings {tuple(embeddings.shape)}"
        )
    begin, end = rows or (0, count)
    valid = torch.ones_like(embeddings[..., 0], dtype=torch.bool) if valid is None else valid
    with torch.autocast(embeddings.device.type, enabled=False):
        z = functional.normalize(embeddings.float(), dim=-1)
        similarity = torch.einsum("prd,qnd->pqrn", z[begin:end], z) / temperature  # (P, M, R, R)
        index = neighbours.expand(end - begin, count, -1, -1)
        shown = valid[:, None].expand(-1, regions, -1).gather(2, neighbours.expand(count, -1, -1))
        lowest = torch.finfo(z.dtype).min
        beside = similarity.gather(3, index).masked_fill(~shown, lowest)  # (P, M, R, N)
        own = beside[torch.arange(end - begin), torch.arange(begin, end)]  # (P, R, N)
        positive = similarity.diagonal(dim1=2, dim2=3)  # (P, M, R)
        negative = torch.logaddexp(beside.logsumexp(3), own.logsumexp(2)[:, None])
        weights = pairs[:, :, None].float() * valid[:, None] * valid[None]  # (M, M, R)
        scale = count / (end - begin) / weights.sum().clamp_min(1e-9)
        weights = weights[begin:end] * scale
        loss = (weights * functional.softplus(negative - positive)).sum()
        hardest = torch.maximum(beside.amax(3), own.amax(2)[:, None])
        return loss, (weights * (positive > hardest)).sum().detach()
