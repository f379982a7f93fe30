"""Masks of pairs against loops that follow the words of the definitions."""

from __future__ import annotations

import itertools

import pytest
import torch

from nnssl.losses.contrastive import find_pairs


def _batch(seed):
    """A batch in no order: 7 instances with 1 to 3 views; parts may differ between views."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(7, (16,), generator=generator),
        torch.randint(3, (16,), generator=generator),
        torch.randint(2, (16,), generator=generator),
    )


def _expected(method, a, b, dataset_similar, within_dataset):
    """Whether image b is (positive, negative) for image a; each is (instance, part, dataset)."""
    if a[0] == b[0]:
        return True, False
    same_dataset, same_part = a[2] == b[2], a[1] == b[1]
    if method == "instances":
        return False, same_dataset or not within_dataset
    positive = method == "partitions_across" and same_part and same_dataset
    if within_dataset and not same_dataset:
        return positive, False
    if not same_part:
        return positive, True
    return positive, not dataset_similar and not same_dataset


OPTIONS = list(itertools.product([True, False], repeat=2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("dataset_similar", "within_dataset"), OPTIONS)
@pytest.mark.parametrize("method", ["instances", "partitions", "partitions_across"])
def test_masks_follow_the_definition(method, dataset_similar, within_dataset, seed):
    numbers = _batch(seed)
    positive, negative = find_pairs(
        method, *numbers, dataset_similar=dataset_similar, within_dataset=within_dataset
    )
    images = list(zip(*(vector.tolist() for vector in numbers), strict=True))
    for a, b in itertools.product(range(16), repeat=2):
        expected = _expected(method, images[a], images[b], dataset_similar, within_dataset)
        expected = (False, False) if a == b else expected
        assert (bool(positive[a, b]), bool(negative[a, b])) == expected, (images[a], images[b])


def test_counts_of_a_full_batch():
    """D=2, V=3, S=4, 2 views, 48 images: counted by hand for an anchor."""
    index = torch.arange(24).repeat(2)
    numbers = index, index % 4, index // 4 % 2
    for options, negatives in (
        ({}, 36),  # three of four parts
        ({"dataset_similar": False}, 48 - 6),  # all but its part of its dataset
        ({"within_dataset": True}, 18),
        ({"within_dataset": True, "dataset_similar": False}, 18),
    ):
        positive, negative = find_pairs("partitions_across", *numbers, **options)
        assert (negative.sum(1) == negatives).all()
        assert (positive.sum(1) == 5).all()  # its other view and 2 views of 2 other volumes


def test_types_and_symmetry():
    positive, negative = find_pairs("partitions_across", *_batch(0))
    assert positive.dtype == torch.float32
    assert negative.dtype == torch.bool
    assert torch.equal(positive, positive.T)
    assert torch.equal(negative, negative.T)
    assert not ((positive > 0) & negative).any()


def test_vectors_of_different_length_are_named():
    with pytest.raises(ValueError, match=r"\(5,\), \(4,\), \(5,\).*of one length"):
        find_pairs("partitions", torch.zeros(5), torch.zeros(4), torch.zeros(5))
