"""Places of a step: right parts, distinct patients, tissue found, impossible patches refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.data.case_table import Case
from nnssl.data.sampling import Mode, Sampler, Sampling
from nnssl.modules.positions import find_parts


class Everywhere:
    """Tissue shares of a volume that is all tissue."""

    def find_share(self, identifier: str, box: np.ndarray, folder: Path | None = None) -> float:
        return 1.0


class RightHalf:
    """Tissue only where the last axis is at least 20."""

    def find_share(self, identifier: str, box: np.ndarray, folder: Path | None = None) -> float:
        return float(
            np.clip(box[2, 1] - np.maximum(box[2, 0], 20), 0, None) / (box[2, 1] - box[2, 0])
        )


def cases(depths: list[int], sign: int = 1, axis: int = 0) -> list[Case]:
    """Two volumes per patient; `depths` along the position axis."""
    shapes = [tuple(np.roll((d, 40, 40), axis).tolist()) for d in depths]
    return [
        Case(f"case{i}", i // 2, i % 3, shape, axis, sign)  # type: ignore[arg-type]
        for i, shape in enumerate(shapes)
    ]


def parts_of(sampler: Sampler, patch_size: tuple[int, ...], parts: int, step: int = 0) -> list[int]:
    """Parts that the objective will see, for the centred view of each drawn patch."""
    places = sampler.draw((0, step, 0))
    drawn = [sampler.cases[p.case] for p in places]
    begin = torch.tensor([p.begin for p in places], dtype=torch.float32)
    extent = torch.tensor(
        [1, *patch_size] if len(patch_size) == 2 else patch_size, dtype=torch.float32
    )
    batch = {
        "box": torch.stack([begin, begin + extent], 2),
        "shape": torch.tensor([c.shape for c in drawn], dtype=torch.float32),
        "axis": torch.tensor([c.axis for c in drawn]),
        "sign": torch.tensor([c.sign for c in drawn]),
    }
    d = len(patch_size)
    identity = torch.eye(d, d + 1).expand(len(places), d, d + 1)
    return find_parts(batch, identity, patch_size, parts).tolist()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("parts", [2, 3, 4, 5, 7])
def test_drawn_parts_are_the_parts_that_the_objective_sees(parts: int, sign: int) -> None:
    """Odd depths and any number of parts: part i of each volume comes i-th, always."""
    sampler = Sampler(
        cases([7, 8, 9, 11, 13, 18], sign),
        (16, 16),
        3 * parts,
        Sampling("partitioned", partitions=parts),
        Everywhere(),
    )
    for step in range(40):
        assert parts_of(sampler, (16, 16), parts, step) == list(range(parts)) * 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_in_three_dimensions_follow_the_anatomical_axis(axis: int) -> None:
    table = cases([32, 35, 41, 29], axis=axis)
    sampler = Sampler(table, (16, 16, 16), 8, Sampling("partitioned", partitions=4), Everywhere())
    for step in range(40):
        assert parts_of(sampler, (16, 16, 16), 4, step) == [0, 1, 2, 3] * 2


def test_every_slice_is_drawn_and_quantiles_are_equal() -> None:
    """Nothing of an odd volume is left out (the original never drew the last slices)."""
    sampler = Sampler(cases([11]), (16, 16), 4, Sampling("partitioned", partitions=4), Everywhere())
    slices = Counter(p.begin[0] for step in range(400) for p in sampler.draw((0, step, 0)))
    assert sorted(slices) == list(range(11))


def test_volumes_come_from_distinct_patients_while_there_are_enough() -> None:
    sampler = Sampler(
        cases([9] * 12), (16, 16), 24, Sampling("partitioned", partitions=4), Everywhere()
    )
    for step in range(20):
        drawn = {p.case for p in sampler.draw((0, step, 0))}
        assert len({sampler.cases[i].patient for i in drawn}) == 6


def test_balanced_draws_equally_many_volumes_of_every_dataset() -> None:
    table = [Case(f"c{i}", i, int(i == 0), (9, 40, 40), 0, 1) for i in range(20)]
    sampling = Sampling(mode="balanced", partitions=4)
    sampler = Sampler(table, (16, 16), 16, sampling, Everywhere())
    places = sampler.draw((0, 3, 0))
    assert Counter(table[p.case].dataset for p in places) == {0: 8, 1: 8}


def test_random_draws_all_cases_and_positions() -> None:
    sampler = Sampler(cases([2, 9, 9]), (16, 16), 3, Sampling(mode="random"), Everywhere())
    places = [p for step in range(300) for p in sampler.draw((0, step, 0))]
    assert {p.case for p in places} == {0, 1, 2}
    assert {p.begin[0] for p in places if p.case == 1} == set(range(9))
    assert {p.begin[1] for p in places} == set(range(25))


def test_same_key_same_places_and_another_rank_others() -> None:
    sampler = Sampler(cases([9] * 6), (16, 16), 8, Sampling("partitioned"), Everywhere())
    assert sampler.draw((1, 2, 0)) == sampler.draw((1, 2, 0))
    assert sampler.draw((1, 2, 0)) != sampler.draw((1, 2, 1))
    assert sampler.draw((1, 2, 0)) != sampler.draw((1, 3, 0))


def test_patches_are_steered_towards_tissue() -> None:
    table, sampling = cases([9] * 6), Sampling("partitioned", min_tissue=0.9, tries=30)
    steered = Sampler(table, (16, 16), 8, sampling, RightHalf())
    free = Sampler(table, (16, 16), 8, sampling, Everywhere())
    columns = [p.begin[2] for step in range(20) for p in steered.draw((0, step, 0))]
    assert np.mean(np.array(columns) >= 18) > 0.95
    assert np.mean([p.begin[2] for s in range(20) for p in free.draw((0, s, 0))]) < 15


def test_background_is_bounded_as_tissue_is_and_the_stricter_bound_counts() -> None:
    """At most a tenth of background voxels is at least nine tenths of tissue."""
    table = cases([9] * 6)
    same = [
        Sampler(table, (16, 16), 8, Sampling("partitioned", tries=30, **bound), RightHalf())
        for bound in (
            {"min_tissue": 0.9},
            {"max_background": 0.1},
            {"min_tissue": 0.5, "max_background": 0.1},
            {"min_tissue": 0.9, "max_background": 1.0},
        )
    ]
    drawn = [[sampler.draw((0, step, 0)) for step in range(10)] for sampler in same]
    assert all(places == drawn[0] for places in drawn)
    free = Sampler(table, (16, 16), 8, Sampling("partitioned"), RightHalf())
    assert [free.draw((0, step, 0)) for step in range(10)] != drawn[0]


@pytest.mark.parametrize("mode", ["partitioned", "random"])
def test_centres_stay_near_the_middle_across_the_position_axis(mode: Mode) -> None:
    sampler = Sampler(cases([9]), (16, 16), 4, Sampling(mode, centre_spread=0.5), Everywhere())
    places = [p.begin for step in range(200) for p in sampler.draw((0, step, 0))]
    assert {rows for _, rows, _ in places} == set(range(6, 19))
    assert {columns for _, _, columns in places} == set(range(6, 19))
    assert {slices for slices, _, _ in places} == set(range(9))


def test_a_patch_larger_than_the_volume_is_centred() -> None:
    sampler = Sampler(cases([9]), (48, 56), 4, Sampling("partitioned"), Everywhere())
    assert {p.begin[1:] for p in sampler.draw((0, 0, 0))} == {(-4, -8)}


def test_no_room_for_parts_stops_and_says_which_patch_would_do() -> None:
    with pytest.raises(ValueError, match="at most 29 voxels"):
        Sampler(cases([32]), (32, 32, 32), 4, Sampling("partitioned", partitions=4), Everywhere())


def test_volumes_too_short_for_the_parts_are_left_out() -> None:
    sampler = Sampler(
        cases([3, 9, 12]), (16, 16), 8, Sampling("partitioned", partitions=4), Everywhere()
    )
    assert sampler.eligible == [1, 2]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("partitions", 1),
        ("volumes", 0),
        ("min_tissue", 1.0),
        ("max_background", 0.0),
        ("tries", 0),
        ("centre_spread", 1.1),
        ("position_axis", 3),
    ],
)
def test_bad_knobs_are_named(knob: str, value: float) -> None:
    with pytest.raises(ValueError, match=knob):
        Sampling(**{knob: value})


def test_only_the_knob_decides_the_mode_where_it_is_set() -> None:
    assert Sampling().with_default("partitioned").mode == "partitioned"
    assert Sampling("random").with_default("partitioned").mode == "random"


def test_as_many_places_as_parts_are_enough() -> None:
    """In volumes of 11 voxels a patch of 8 has four places."""
    table = cases([10, 11, 12])
    sampler = Sampler(table, (8, 16, 16), 4, Sampling("partitioned", partitions=4), Everywhere())
    assert sampler.eligible == [1, 2]
    message = r"Set fewer sampling.partitions \(4 at most\), or training.patch_size \(.* at most 7"
    with pytest.raises(ValueError, match=message):
        Sampler(cases([11]), (8, 16, 16), 5, Sampling("partitioned", partitions=5), Everywhere())


def test_advice_is_possible() -> None:
    """A 2D patch is one slice thick, whatever its size: no other one would do."""
    with pytest.raises(ValueError, match=r"Set fewer sampling.partitions \(3 at most\), or samp"):
        Sampler(cases([3]), (16, 16), 4, Sampling("partitioned", partitions=4), Everywhere())
    with pytest.raises(ValueError, match=r"\. Set sampling.mode: random\.$"):
        Sampler(cases([1]), (16, 16), 4, Sampling("partitioned", partitions=4), Everywhere())


def test_cases_repeat_only_where_there_are_fewer_than_samples() -> None:
    sampler = Sampler(cases([20] * 6), (16, 16), 6, Sampling("random"), Everywhere())
    for step in range(10):
        assert sorted(place.case for place in sampler.draw((0, step, 0))) == list(range(6))


def test_patients_repeat_only_when_all_were_drawn() -> None:
    """Five volumes of three patients: each once or twice, and no more than five."""
    sampler = Sampler(
        cases([20] * 6), (16, 16), 10, Sampling("partitioned", partitions=2), Everywhere()
    )
    for step in range(10):
        places = sampler.draw((0, step, 0))
        assert len(places) == 10
        drawn = Counter(sampler.cases[place.case].patient for place in places[::2])
        assert sorted(drawn.values()) == [1, 2, 2]


@pytest.mark.parametrize("mode", ["random", "partitioned", "balanced"])
def test_a_step_looks_at_the_drawn_cases_only(mode: Mode) -> None:
    """A step costs the same whatever the number of cases is."""
    looks = []

    class Watched(list[Case]):
        def __getitem__(self, number: Any) -> Any:
            looks.append(number)
            return super().__getitem__(number)

    sampler = Sampler(cases([20] * 500), (16, 16), 8, Sampling(mode, partitions=2), Everywhere())
    sampler.cases = Watched(sampler.cases)
    places = sampler.draw((0, 0, 0))
    assert sorted(looks) == sorted(place.case for place in places)
