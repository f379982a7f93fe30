"""Which patches one step sees: random, or m volumes x S parts, or that balanced over datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval

from nnssl.common.checks import Count, Fraction, checked
from nnssl.data.case_table import Case, PositionAxis
from nnssl.data.tissue_share import TissueShare
from nnssl.modules.positions import extent3

Mode = Literal["random", "partitioned", "balanced"]


@checked
@dataclass(frozen=True)
class Sampling:
    """Knobs of the sampler (section `sampling` of a YAML).

    Attributes:
        mode: null takes what the objective needs; `random` draws every patch from any case;
            `partitioned` draws m volumes (of distinct patients while there are enough) and one
            patch from each of S parts of each; `balanced` is partitioned with equally many
            volumes of every dataset of origin.
        partitions: number of parts S.
        volumes: number of volumes m per step; null: what the budget allows.
        position_axis: `head_feet`, `slice` (array axis 0), or an array axis.
        centre_spread: share of the reachable positions, around the middle of the volume, on the
            axes across `position_axis`, in every mode; 1: everywhere, 0: the middle only. Contrast
            across volumes needs patches that show comparable anatomy.
        min_tissue: smallest share of tissue in a patch, found from the image.
        max_background: the same bound as largest share of background voxels (`bg_max`), or null;
            the stricter of the two counts. Padding is background.
        tries: places tried before the one with most tissue is taken.
        unlabelled: whether images of `nnssl_preprocess_unlabelled` are drawn beside the training
            cases: all of them, none, or those of the named folders.
    """

    mode: Mode | None = None
    partitions: Annotated[int, Ge(2)] = 4
    volumes: Count | None = None
    position_axis: PositionAxis = "head_feet"
    centre_spread: Fraction = 1.0
    min_tissue: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    max_background: Annotated[float, Interval(gt=0, le=1)] | None = None
    tries: Count = 8
    unlabelled: bool | Sequence[str] = True

    def with_default(self, mode: Mode) -> Sampling:
        """These knobs, with the objective's mode where none is set."""
        return self if self.mode is not None else replace(self, mode=mode)

    @property
    def least_tissue(self) -> float:
        """Smallest share of tissue that both bounds allow."""
        background = 1.0 if self.max_background is None else self.max_background
        return max(self.min_tissue, 1 - background)

    @property
    def structured(self) -> bool:
        """Whether a step is made of volumes times parts."""
        return self.mode != "random"


@dataclass(frozen=True)
class PatchPlace:
    """One drawn patch: the case and the first voxel of the nominal patch on three axes."""

    case: int
    begin: tuple[int, int, int]


class Sampler:
    """Draws the places of a step; the same step and rank give the same places, always.

    Args:
        patch_size: nominal size of a full view in voxels, length d.
        samples: patches per step; a multiple of `sampling.partitions` if structured.

    Raises:
        ValueError: where no case is long enough for S parts; the message says which patch would do.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        patch_size: Sequence[int],
        samples: int,
        sampling: Sampling,
        tissue: TissueShare,
    ) -> None:
        self.cases, self.patch_size = list(cases), tuple(patch_size)
        self.extent = np.array(extent3(patch_size))
        self.sampling, self.samples, self.tissue = sampling, samples, tissue
        self.eligible = self._find_eligible()
        self._eligible, self._groups = np.array(self.eligible), self._group()

    def draw(self, key: Sequence[int]) -> list[PatchPlace]:
        """Places of one step; `key` (run seed, step, rank) is the only source of randomness."""
        volumes = np.random.default_rng([*map(int, key), 0])
        numbers, parts = self._draw_cases(volumes)
        return [
            self._draw_place(number, part, np.random.default_rng([*map(int, key), 1, j]))
            for j, (number, part) in enumerate(zip(numbers, parts, strict=True))
        ]

    def _find_eligible(self) -> list[int]:
        if not self.sampling.structured:
            return list(range(len(self.cases)))
        places = [case.shape[case.axis] - self.extent[case.axis] + 1 for case in self.cases]
        if kept := [i for i, number in enumerate(places) if number >= self._parts]:
            return kept
        longest = max(case.shape[case.axis] for case in self.cases)
        axes = sorted({case.axis for case in self.cases})
        room, most = longest - self._parts + 1, max(places)
        ways = [f"fewer sampling.partitions ({most} at most)"] if most > 1 else []
        if room > 0 and len(self.patch_size) + axes[0] > 2:  # a 2D patch has one voxel on axis 0
            ways += [f"training.patch_size (a patch of at most {room} voxels on that axis)"]
        raise ValueError(
            f"a patch of {self.extent.tolist()} voxels leaves no {self._parts} different positions "
            f"along array axis {axes} (longest volume: {longest} voxels). Set "
            f"{', or '.join([*ways, 'sampling.mode: random'])}."
        )

    def _group(self) -> dict[int, dict[int, list[int]]]:
        """Dataset of origin (0 for all, where these are not balanced) -> patient -> volumes."""
        groups: dict[int, dict[int, list[int]]] = {}
        for i in self.eligible:
            case = self.cases[i]
            dataset = case.dataset if self.sampling.mode == "balanced" else 0
            groups.setdefault(dataset, {}).setdefault(case.patient, []).append(i)
        return dict(sorted(groups.items()))

    @property
    def _parts(self) -> int:
        return self.sampling.partitions

    def _draw_cases(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        if not self.sampling.structured:
            drawn = rng.choice(
                self._eligible, self.samples, replace=len(self.eligible) < self.samples
            )
            return [int(i) for i in drawn], [-1] * self.samples
        volumes = self._draw_volumes(rng, self.samples // self._parts)
        parts = list(range(self._parts))
        return [v for v in volumes for _ in parts], parts * len(volumes)

    def _draw_volumes(self, rng: np.random.Generator, count: int) -> list[int]:
        if self.sampling.mode == "partitioned":
            return self._draw_distinct(rng, self._groups[0], count)
        order = rng.permutation(list(self._groups))
        drawn: list[int] = []
        for k, dataset in enumerate(order):
            share = count // len(order) + (k < count % len(order))
            drawn += self._draw_distinct(rng, self._groups[dataset], share)
        return drawn

    def _draw_distinct(
        self, rng: np.random.Generator, volumes: Mapping[int, list[int]], count: int
    ) -> list[int]:
        """`count` volumes of distinct patients; patients repeat when they run out."""
        patients = np.fromiter(volumes, int, len(volumes))
        drawn: list[int] = []
        while len(drawn) < count:
            chosen = rng.permutation(patients)[: count - len(drawn)]
            drawn += [int(rng.choice(volumes[p])) for p in chosen]
        return drawn

    def _draw_place(self, number: int, part: int, rng: np.random.Generator) -> PatchPlace:
        case = self.cases[number]
        best, best_share = None, -1.0
        for _ in range(self.sampling.tries):
            begin = self._draw_begin(case, part, rng)
            box = np.stack([begin, begin + self.extent], 1)
            share = self.tissue.find_share(case.identifier, box, case.folder)
            if share > best_share:
                best, best_share = begin, share
            if share >= self.sampling.least_tissue:
                break
        assert best is not None
        return PatchPlace(number, (int(best[0]), int(best[1]), int(best[2])))

    def _draw_begin(self, case: Case, part: int, rng: np.random.Generator) -> np.ndarray:
        begin = np.empty(3, int)
        for axis in range(3):
            spare = case.shape[axis] - self.extent[axis]
            low, high = 0, spare + 1
            if spare <= 0:
                begin[axis] = spare // 2  # the patch is larger than the volume: centred
                continue
            if axis != case.axis:
                reach = round(self.sampling.centre_spread * spare)
                low = (spare - reach) // 2
                high = low + reach + 1
            elif part >= 0:  # first voxels i with floor((i + 0.5) * S / places) = number
                number = part if case.sign > 0 else self._parts - 1 - part
                edges = np.ceil(np.array([number, number + 1]) * high / self._parts - 0.5)
                low, high = edges.astype(int)
            begin[axis] = rng.integers(low, max(high, low + 1))
        return begin
