"""The law of all views, written once: a batch gives exactly what its samples give one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

Make = Callable[[Mapping[str, Any]], dict[str, Tensor]]

RAW_PATCHES = {2: (18, 21), 3: (9, 14, 13)}
SPACINGS = {2: (1.5, 1.0), 3: (2.0, 1.0, 1.5)}


def make_batch(dimension: int, channels: int = 1, samples: int = 5, seed: int = 7) -> dict:
    """Patches with means and spreads of their own, keys and one dense target."""
    random = torch.Generator().manual_seed(seed)
    raw_patch = RAW_PATCHES[dimension]
    shape = (samples, channels, *[1] * dimension)
    image = torch.randn(samples, channels, *raw_patch, generator=random)
    image = image * torch.rand(shape, generator=random) + torch.randn(shape, generator=random)
    return {
        "image": image,
        "key": torch.tensor([[seed, 11, 0, row] for row in range(samples)]),
        "dense_targets": {"clusters": torch.randint(0, 9, (samples, *raw_patch), generator=random)},
    }


def copied(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that shares no memory."""
    return rows(batch, slice(None))


def rows(batch: Mapping[str, Any], index: slice) -> dict[str, Any]:
    """Some samples of a batch, copied."""
    dense_targets = {name: item[index].clone() for name, item in batch["dense_targets"].items()}
    kept = {name: batch[name][index].clone() for name in ("image", "key")}
    return {**kept, "dense_targets": dense_targets}


def assert_law(make: Make, batch: Mapping[str, Any]) -> None:
    """The law, and what follows from it, for a function from a batch to named tensors."""
    before = copied(batch)
    together = make(batch)
    for name in ("image", "key"):
        assert torch.equal(batch[name], before[name]), f"{name} was changed"
    assert torch.equal(batch["dense_targets"]["clusters"], before["dense_targets"]["clusters"])
    _assert_equal(make(batch), together)
    for row in range(len(batch["image"])):
        alone = make(rows(batch, slice(row, row + 1)))
        _assert_equal(alone, {name: item[row : row + 1] for name, item in together.items()})
    for item in together.values():
        assert item.device.type == "cpu"
        assert item.dtype in (torch.float32, torch.int64)
        assert item.isfinite().all()
    other = make({**batch, "key": batch["key"] + torch.tensor([0, 1, 0, 0])})
    for name, item in together.items():
        assert not torch.equal(item, other[name]), f"another key gives the same {name}"


def _assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, item in found.items():
        torch.testing.assert_close(item, wanted[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(params=["2d-1", "2d-3", "3d-1", "3d-3"])
def batch(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Two and three dimensions, one and three channels."""
    dimension, channels = request.param.split("d-")
    return make_batch(int(dimension), int(channels))


@pytest.fixture
def spacing(batch: dict[str, Any]) -> tuple[float, ...]:
    """Spacing that fits `batch`."""
    return SPACINGS[batch["image"].ndim - 2]


@pytest.fixture
def law() -> Callable[[Make, Mapping[str, Any]], None]:
    """`law(make, batch)` asserts the law."""
    return assert_law
