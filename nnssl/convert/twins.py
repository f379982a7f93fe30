"""Different patients with voxel-identical images, which leak from one fold into another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nnssl.convert.checks import CheckedCase


@dataclass(frozen=True)
class Twins:
    """Cases of different patients with the same voxels in the same channel."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What was found, what it does, and what to do."""
        others = " ".join(self.patients[1:])
        return (
            f"{' and '.join(self.cases)} have voxel-identical images, though their patients are "
            f"{' and '.join(self.patients)}; folds may part them, so that one is trained on and "
            f"the other evaluated (to leave out: --leave-out {others})"
        )


def identical_images(checked: Sequence[CheckedCase]) -> list[Twins]:
    """All groups of cases that share an image, but not the patient."""
    cases: dict[tuple[int, str], list[CheckedCase]] = defaultdict(list)
    for each in checked:
        for channel, voxels in enumerate(each.voxels):
            cases[channel, voxels].append(each)
    found = (_twins(group) for group in cases.values())
    return list(dict.fromkeys(twins for twins in found if len(twins.patients) > 1))


def _twins(group: Sequence[CheckedCase]) -> Twins:
    patients = sorted({each.case.patient for each in group})
    return Twins(tuple(each.case.identifier for each in group), tuple(patients))
