"""Which pairs of a batch are positive and which negative, for `contrastive_loss`.

Every function takes integer vectors (N,), one entry per embedding, and returns
`positive` (N, N) float32 and `negative` (N, N) bool. Embeddings of one instance (views of one
drawn image) are each other's positives, never negatives, and none is a positive of itself.

Reference:
    Chaitanya, Erdil, Karani, Konukoglu: Contrastive learning of global and local features for
    medical image segmentation with limited annotations. NeurIPS 2020, arXiv:2006.10511.
"""

from __future__ import annotations

from torch import Tensor


def instances(
    instance: Tensor, dataset: Tensor, *, within_dataset: bool = False
) -> tuple[Tensor, Tensor]:
    """G^R (SimCLR): positive = other views of the instance; negative = all other instances.

    Args:
        instance: number of the drawn image, (N,).
        dataset: number of the dataset of origin, (N,).
        within_dataset: negatives come from the anchor's own dataset only.

    Raises:
        ValueError: vectors of different length.
    """
    same_instance, same_dataset = _same(instance=instance, dataset=dataset)
    negative = ~same_instance & same_dataset if within_dataset else ~same_instance
    return _without_self(same_instance), negative


def partitions(
    instance: Tensor,
    part: Tensor,
    dataset: Tensor,
    *,
    dataset_similar: bool = True,
    within_dataset: bool = False,
) -> tuple[Tensor, Tensor]:
    """G^D-: positive = other views of the instance; negative = images of other parts.

    Images of the same part of other volumes are neither positive nor negative.

    Args:
        instance: number of the drawn image, (N,).
        part: number of the part of its volume in which the image lies, (N,), any number of parts.
        dataset: number of the dataset of origin, (N,).
        dataset_similar: the datasets show the same anatomy, so that a part of one is not
            negative to the same part of another; False: it is.
        within_dataset: negatives come from the anchor's own dataset only.

    Raises:
        ValueError: vectors of different length.
    """
    same_instance, same_part, same_dataset = _same(instance=instance, part=part, dataset=dataset)
    similar = same_part if dataset_similar else same_part & same_dataset
    negative = ~similar & ~same_instance
    return _without_self(same_instance), negative & same_dataset if within_dataset else negative


def partitions_across(
    instance: Tensor,
    part: Tensor,
    dataset: Tensor,
    *,
    dataset_similar: bool = True,
    within_dataset: bool = False,
) -> tuple[Tensor, Tensor]:
    """G^D: as `partitions`, and the same part of other volumes of the dataset is positive too.

    Args:
        instance: number of the drawn image, (N,).
        part: number of the part of its volume in which the image lies, (N,), any number of parts.
        dataset: number of the dataset of origin, (N,).
        dataset_similar: as in `partitions`.
        within_dataset: as in `partitions`.

    Raises:
        ValueError: vectors of different length.
    """
    same_instance, same_part, same_dataset = _same(instance=instance, part=part, dataset=dataset)
    _, negative = partitions(
        instance, part, dataset, dataset_similar=dataset_similar, within_dataset=within_dataset
    )
    return _without_self(same_instance | (same_part & same_dataset)), negative


def _same(**numbers: Tensor) -> list[Tensor]:
    shapes = {name: tuple(vector.shape) for name, vector in numbers.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"found shapes {shapes}, allowed: one vector (N,) of the same N each")
    return [vector[:, None] == vector[None, :] for vector in numbers.values()]


def _without_self(same: Tensor) -> Tensor:
    return same.float().fill_diagonal_(0.0)
