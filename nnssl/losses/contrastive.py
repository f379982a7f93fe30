"""The contrastive loss, and the pairs it is taken over (SimCLR, G^R, G^D-, G^D, PCL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


class NoSignalError(ValueError):
    """A batch holds nothing to learn from; the message says why."""


Pairs = Literal["instances", "partitions", "partitions_across", "positions"]


@dataclass(frozen=True)
class Near:
    """What counts as the same place.

    Attributes:
        distance: places less than this apart are the same, as share of the reachable positions.
        soft: weights fall linearly to 0 at that distance instead of being 1 within it.
    """

    distance: float = 0.1
    soft: bool = False

    def weigh(self, apart: Tensor) -> Tensor:
        """Weights 0 to 1 of distances, float32."""
        within = (1 - apart / self.distance).clamp_min(0)
        return within if self.soft else (within > 0).float()


NEAR = Near()


def contrastive_loss(
    embeddings: Tensor,
    positive: Tensor,
    negative: Tensor,
    temperature: float,
    rows: tuple[int, int] | None = None,
    candidates: Tensor | None = None,
) -> Tensor:
    """Mean of `-log(e^s_ap / (e^s_ap + sum_{n in N_a} e^s_an))` over positive pairs (a, p).

    `s_ab = cos(z_a, z_b) / temperature`. A denominator holds one positive and the anchor's
    negatives, never a second positive. With m equal embeddings every term is `ln(1 + |N_a|)`.
    An anchor without positives adds nothing, one without negatives adds 0; where all anchors do,
    there is nothing to learn, which is an error. Computed in float32 (float64 for float64 input),
    under autocast too. `find_pairs` makes the masks.

    Several processes: every rank gathers the embeddings of all ranks, builds the masks of all,
    and passes the rows of its own anchors:

        z = all_gather(embeddings)  # nnssl.common.distributed
        rows = local_rows(len(embeddings))
        loss = contrastive_loss(z, positive, negative, temperature, rows=rows)

    The loss of `rows` is scaled by N / (end - begin), so that its mean over ranks of equal share
    is the loss of one process. `all_gather` adds up the gradients of all ranks and
    DistributedDataParallel averages them, so that the gradient is that of one process too.

    Args:
        embeddings: z, (N, D), any floating type; only the direction of a row counts.
        positive: (N, M) weights >= 0 of the terms (a, p), row a the anchor, zero on the diagonal.
        negative: (N, M) bool; `negative[a, n]` puts n into N_a. Disjoint from the positives.
        temperature: divisor of the cosine similarity, above 0.
        rows: begin and end (exclusive) of the anchors that count, default all.
        candidates: (M, D), what anchors are compared with: keys of a target network, a memory bank;
            default the embeddings themselves.

    Returns:
        Scalar, float32 or float64.

    Raises:
        NoSignalError: no positive pair, or no negative of any anchor that has a positive.
        ValueError: rows out of range, or shapes that do not fit.

    Reference:
        Chaitanya, Erdil, Karani, Konukoglu: Contrastive learning of global and local features for
        medical image segmentation with limited annotations. NeurIPS 2020, arXiv:2006.10511.
        Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of visual
        representations. ICML 2020, arXiv:2002.05709.

    Differs from the paper:
        The sum is divided by the number of positive pairs; the published code divides by the number
        of images.
    """
    count = len(embeddings)
    begin, end = rows or (0, count)
    candidates = embeddings if candidates is None else candidates
    _check(embeddings, candidates, positive, negative)
    if not 0 <= begin < end <= count:
        raise ValueError(f"rows: found {rows}, allowed: 0 <= begin < end <= {count} (embeddings)")
    useful = (negative.any(1) & (positive > 0).any(1)).any()
    total = positive.sum()
    weight, has_negative = torch.stack([total, useful.to(total.dtype)]).tolist()  # one wait
    if weight <= 0:
        raise NoSignalError(
            f"positive: found no positive pair among {count} embeddings, allowed: at least one. "
            "Use two views per image, or several volumes per part of the body."
        )
    if not has_negative:
        raise NoSignalError(
            f"negative: found none among {count} embeddings, so that any weights have the loss 0; "
            "allowed: at least one, of another image or part of the body. Use more images a step."
        )
    with torch.autocast(embeddings.device.type, enabled=False):
        wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        z = functional.normalize(wide, dim=1)
        others = z if candidates is embeddings else functional.normalize(candidates.to(z), dim=1)
        similarity = z[begin:end] @ others.T / temperature  # (rows, M)
        blocked = similarity.masked_fill(~negative[begin:end], torch.finfo(z.dtype).min)
        terms = functional.softplus(blocked.logsumexp(dim=1, keepdim=True) - similarity)
        total = (positive[begin:end].to(z.dtype) * terms).sum()
    return total * (count / (end - begin) / weight)


@torch.no_grad()
def collapse_value(positive: Tensor, negative: Tensor) -> Tensor:
    """The contrastive loss of equal embeddings: the mean of ln(1 + |N_a|) over positive pairs."""
    weights = positive.sum(1)
    collapsed = (weights * torch.log1p(negative.sum(1).float())).sum()
    return collapsed / weights.sum().clamp_min(1)


def find_pairs(
    kind: Pairs,
    instance: Tensor,
    part: Tensor,
    dataset: Tensor,
    *,
    dataset_similar: bool = True,
    within_dataset: bool = False,
    position: Tensor | None = None,
    near: Near = NEAR,
    anchors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Which pairs of a batch are positive and which negative.

    Embeddings of one instance (views of one drawn image) are each other's positives, never
    negatives, and none is a positive of itself. Beyond that:

    - `instances` (G^R, SimCLR): negative are all other instances.
    - `partitions` (G^D-): negative are images of other parts; images of the same part of other
      volumes are neither positive nor negative.
    - `partitions_across` (G^D): as `partitions`, and the same part of other volumes of the dataset
      is positive too.
    - `positions` (PCL): as `partitions_across`, but instead of the same part the same place: closer
      than `near.distance` on every axis. Every anchor has the same sum of weights.

    Args:
        kind: one of these.
        instance: number of the drawn image, (N,).
        part: number of the part of its volume in which the image lies, (N,), any number of parts.
        dataset: number of the dataset of origin, (N,).
        dataset_similar: the datasets show the same anatomy, so that a part of one is not negative
            to the same part of another; False: it is.
        within_dataset: negatives come from the anchor's own dataset only.
        position: (N, A), place in the volume along A axes, 0 to 1; for `positions`.
        near: what `positions` takes for the same place.
        anchors: number of leading members that are anchors (of N, which then are M); the others (of
            a memory bank) are no instance of this batch and never positive. None: all.

    Returns:
        `positive` (N, M) float32 and `negative` (N, M) bool, row a the anchor.

    Raises:
        ValueError: vectors of different length.

    Reference: as `contrastive_loss`; for `positions` Zeng et al.: Positional contrastive learning
    for volumetric medical image segmentation. MICCAI 2021, arXiv:2106.09157.

    Differs from the paper: its denominator also holds the anchor's other positives.
    """
    shapes = [tuple(vector.shape) for vector in (instance, part, dataset)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"instance, part, dataset: found shapes {shapes}, allowed: vectors (N,) of one length"
        )
    count = len(instance) if anchors is None else anchors
    same_instance, same_part, same_dataset = (
        vector[:count, None] == vector[None, :] for vector in (instance, part, dataset)
    )
    same_instance[:, count:] = False
    closeness = same_part.float()  # 0: another place
    if kind == "positions":
        if position is None:
            raise ValueError("position: found None, allowed for positions: places (N, A)")
        apart = (position[:count, None] - position[None, :]).abs().amax(-1)  # (N, M)
        closeness = near.weigh(apart)
        same_part = closeness > 0
    similar = same_part if dataset_similar else same_part & same_dataset
    negative = ~same_instance if kind == "instances" else ~similar & ~same_instance
    positive = same_instance.float()
    if kind in ("partitions_across", "positions"):
        positive = torch.maximum(positive, closeness * same_dataset)
    positive = positive.fill_diagonal_(0)
    positive[:, count:] = 0
    if kind == "positions":
        positive = positive / positive.sum(1, keepdim=True).clamp_min(1e-6)
    return positive, negative & same_dataset if within_dataset else negative


def _check(embeddings: Tensor, candidates: Tensor, positive: Tensor, negative: Tensor) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings: found shape {tuple(embeddings.shape)}, allowed: (N, D)")
    pairs = (len(embeddings), len(candidates))
    for name, mask in (("positive", positive), ("negative", negative)):
        if tuple(mask.shape) != pairs:
            raise ValueError(f"{name}: found shape {tuple(mask.shape)}, allowed: {pairs}, (N, M)")
    if negative.dtype != torch.bool:
        raise ValueError(f"negative: found dtype {negative.dtype}, allowed: torch.bool")
