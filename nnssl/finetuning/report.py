"""What became of every tensor when weights went from one network into another: table and record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

OUTPUT_LAYERS = ".seg_layers."
OUTCOMES = ("loaded", "adapted", "skipped", "random")  # of tensors of the target


@dataclass(frozen=True)
class KeyMatch:
    """What happens to one tensor of the target, or to a part of its input channels.

    Attributes:
        key: its first name in the target's state dict.
        parameters: the number of elements.
        outcome: `loaded`, `adapted` (loaded by one of the rules), `skipped` (wanted, but the source
            has nothing that fits), `random` (not wanted, or a new part of an adapted tensor) or
            `missing` (a tensor of the source that was trained and has no place here).
        reason: by which rule, or why not; empty for `loaded`.
    """

    key: str
    parameters: int
    outcome: Literal["loaded", "adapted", "skipped", "random", "missing"]
    reason: str = ""

    @property
    def part(self) -> str:
        if OUTPUT_LAYERS in f".{self.key}":
            return "segmentation layers"
        return self.key.split(".", 1)[0]


@dataclass(frozen=True)
class Transfer:
    """The matches of all tensors of the target and of the source's that are missing in it, and what
    is to be loaded."""

    matches: tuple[KeyMatch, ...]
    tensors: Mapping[str, Tensor]

    @property
    def loaded(self) -> list[str]:
        """Keys that come from the source."""
        return list(self.tensors)

    @property
    def share(self) -> float:
        """Loaded parameters as a share of the wanted ones, missing ones among them, 0 to 1."""
        return self._share(self.matches, "loaded", "adapted", "skipped", "missing")

    @property
    def share_of_encoder(self) -> float:
        """Loaded parameters of the target's encoder as a share of it, 0 to 1."""
        return self._share([match for match in self.matches if match.part == "encoder"], *OUTCOMES)

    @property
    def share_of_network(self) -> float:
        """Loaded parameters as a share of the whole target, 0 to 1."""
        return self._share(self.matches, *OUTCOMES)

    def _share(self, matches: Sequence[KeyMatch], *outcomes: str) -> float:
        whole = _count(matches, *outcomes)
        return _count(matches, "loaded", "adapted") / whole if whole else 0.0

    def require(self, min_share: float) -> None:
        """Raises ValueError when less than `min_share` of the wanted parameters loads."""
        if self.share < min_share or not self.tensors:
            raise ValueError(
                f"Only {self.share:.1%} of the wanted parameters can be loaded; weights.min_share "
                f"asks for {min_share:.1%}. Are the weights from another architecture or from "
                "other plans? nnssl_plan_like FILE -d DATASET makes plans that take all of them.\n"
                + self.table()
            )

    def table(self) -> str:
        """Parameter counts and their share of the network, by part and outcome."""
        total = _count(self.matches, *OUTCOMES)
        rows: dict[tuple[str, str, str], list[int]] = {}
        for match in self.matches:
            row = rows.setdefault((match.part, match.outcome, match.reason), [0, 0])
            row[0] += 1
            row[1] += match.parameters
        lines = [f"{'part':<20}{'what':<9}{'tensors':>8}{'parameters':>13}{'share':>8}  reason"]
        for (part, outcome, reason), (tensors, parameters) in rows.items():
            numbers = f"{tensors:>8}{parameters:>13,}{parameters / max(total, 1):>8.1%}"
            lines.append(f"{part:<20}{outcome:<9}{numbers}  {reason}".rstrip())
        lines.append(
            f"Of the wanted parameters {self.share:.1%} are loaded: {self.share_of_encoder:.1%} of "
            f"this network's encoder, {self.share_of_network:.1%} of this network."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain record for a checkpoint."""
        return {
            "loaded": self.loaded,
            "share": self.share,
            "share_of_encoder": self.share_of_encoder,
            "share_of_network": self.share_of_network,
            "parameters": {
                outcome: _count(self.matches, outcome) for outcome in (*OUTCOMES, "missing")
            },
            "adapted": {m.key: m.reason for m in self.matches if m.outcome == "adapted"},
            "skipped": {m.key: m.reason for m in self.matches if m.outcome == "skipped"},
        }


def _count(matches: Sequence[KeyMatch], *outcomes: str) -> int:
    return sum(match.parameters for match in matches if match.outcome in outcomes)
