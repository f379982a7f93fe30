"""CPC: which pieces predict which, both losses against loops, two processes equal one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from building import make_objective
from halves import check_halves
from test_contract import make_batch, with_views
from torch import nn

from nnssl.objectives.cpc import CPCObjective, plan_overlapping, plan_pyramids
from nnssl.views.pieces import PieceGrid

objective = partial(make_objective, CPCObjective)


def batch(dimension: int = 2) -> dict[str, Any]:
    return with_views(make_batch(dimension, 1), CPCObjective)


def plan(size: tuple[int, ...], overlap: float = 0.5, pieces: int = 5) -> PieceGrid:
    return plan_overlapping(size, pieces, (2,) * len(size), overlap, jitter=0.0)


def named(grid: PieceGrid, column: int) -> tuple[list[int], list[int]]:
    """Numbers in the grid of a column's pyramid (without the rim) and of the pieces below."""
    used, pyramid, below = plan_pyramids(grid)
    inside = pyramid[column][pyramid[column] < len(used)]
    return used[inside].tolist(), used[below[column]].tolist()


def test_the_pyramids_of_the_paper_in_2d() -> None:
    """5 x 5 overlapping pieces: tip in row 1, three above it, two below but for one row."""
    grid = plan((96, 96))
    assert plan_pyramids(grid)[1].shape == (5, 4)
    assert named(grid, 2) == ([1, 2, 3, 7], [17, 22])
    assert named(grid, 0) == ([0, 1, 5], [15, 20])  # one piece of the pyramid is beyond the rim
    assert len(plan_pyramids(grid)[0]) == 20  # row 2 is not seen


def test_the_pyramids_of_the_paper_in_3d() -> None:
    """4 x 4 x 4 pieces that do not overlap: nine above the tip in row 1, two below without gap."""
    grid = plan((64, 64, 64), overlap=0.0, pieces=4)
    assert plan_pyramids(grid)[1].shape == (16, 10)
    above = [0, 1, 2, 4, 5, 6, 8, 9, 10]  # row 0: all within one column of (1, 1)
    assert named(grid, 5) == ([*above, 21], [37, 53])


def test_rows_run_along_the_axis_with_most_pieces() -> None:
    """One piece along a flat first axis: rows run along the second."""
    grid = plan((3, 64, 64), pieces=5)
    assert grid.counts == (1, 5, 5)
    assert named(grid, 2) == ([1, 2, 3, 7], [17, 22])


@pytest.mark.parametrize("size", [(96, 96), (40, 64), (31, 47), (12, 40, 40)])
def test_pieces_below_share_no_voxel_with_the_pyramid(size: tuple[int, ...]) -> None:
    grid = plan_overlapping(size, 5, (2,) * len(size), 0.5, jitter=0.2)
    axis = grid.counts.index(max(grid.counts))
    keys = torch.arange(36).reshape(9, 4)
    begins = grid.draw_begins(keys, "x")[:, :, axis].T  # (N, 9)
    used, pyramid, below = plan_pyramids(grid)
    assert len(below[0]) == 2
    lowest = begins[used[pyramid[pyramid < len(used)]]].amax(0) + grid.side[axis]
    assert (begins[used[below.flatten()]].amin(0) >= lowest).all()


def test_a_grid_without_a_piece_below_is_told() -> None:
    with pytest.raises(ValueError, match=r"none lies below the pyramid.*objective.overlap"):
        plan_pyramids(plan((96, 96), overlap=0.8, pieces=3))


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_loss_is_info_nce_over_all_pieces_below(
    make_unet: Callable[..., nn.Module], dimension: int
) -> None:
    made, given = objective(make_unet, dimension), batch(dimension)
    predictions, targets = made._predict(made._cut(given))
    p, c = (rows.flatten(0, 1).detach().double().numpy() for rows in (predictions, targets))
    losses = [
        -(p[q] @ c[q] / 0.1) + np.log(sum(np.exp(p[q] @ other / 0.1) for other in c))
        for q in range(len(p))
    ]
    terms = made(given)
    assert float(terms["loss"].detach()) == pytest.approx(float(np.mean(losses)), rel=1e-4)
    candidates = 4 * made.below.numel()  # 4 images
    assert float(terms["collapse_loss"]) == pytest.approx(math.log(candidates))
    assert float(terms["chance"]) == pytest.approx(1 / candidates)


def test_the_binary_loss_judges_right_and_false_columns(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, given = objective(make_unet, loss="binary"), batch()
    predictions, targets = made._predict(made._cut(given))
    columns = len(targets)
    shifts = []
    for shift in range(1, columns):
        score = torch.stack(
            [(predictions * targets.roll(s, 0)).sum(-1).mean(1) for s in (0, shift)]
        )
        expected = torch.nn.functional.binary_cross_entropy_with_logits(
            score / 0.1, torch.tensor([[1.0], [0.0]]).expand(2, columns)
        )
        shifts.append(float(expected.detach()))
    terms = made(given)
    assert any(float(terms["loss"].detach()) == pytest.approx(loss) for loss in shifts)
    assert float(terms["collapse_loss"]) == pytest.approx(math.log(2))


def test_images_without_content_cost_the_collapse_value(
    make_unet: Callable[..., nn.Module],
) -> None:
    made, same = objective(make_unet), batch()
    same["views"]["global_0"].image[:] = 3.0
    terms = made(same)
    assert float(terms["loss"].detach()) == pytest.approx(float(terms["collapse_loss"]), abs=1e-4)


def test_the_rim_is_zero_and_every_other_piece_counts(make_unet: Callable[..., nn.Module]) -> None:
    """The prediction of a column changes with a piece of its pyramid and with no other."""
    made = objective(make_unet, patch_size=(32, 32)).eval()
    codes = torch.randn(1, len(made._used), 128, generator=torch.Generator().manual_seed(0))
    made.embed = lambda pieces: pieces

    def predict(changed: int) -> torch.Tensor:
        other = codes.clone()
        other[:, changed] += 1
        return made._predict(other)[0].flatten(1)

    before = made._predict(codes)[0].flatten(1)
    for piece in range(codes.shape[1]):
        moved = (predict(piece) - before).abs().amax(1) > 1e-6
        assert torch.equal(moved, (made.pyramid == piece).any(1))


def _make_still(make_unet: Callable[..., nn.Module]) -> Any:
    """Running statistics in the place of the batch's, which one process does not share."""
    return objective(make_unet).eval()


def test_two_processes_equal_one_in_value_and_gradient(
    make_unet: Callable[..., nn.Module], two_processes: Callable[..., list[Any]]
) -> None:
    check_halves(partial(_make_still, make_unet), batch, two_processes)
