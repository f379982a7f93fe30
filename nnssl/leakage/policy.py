"""What follows for weights that have seen, or may have seen, what they are evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnssl.leakage.check import Evaluation, check
from nnssl.leakage.seen import Seen

OVERRIDE = "weights.allow_contamination=true"
UNKNOWN = "it cannot be told whether the source has seen the patients that validate here."


@dataclass(frozen=True)
class SourceJudgement:
    """What is to be said of weights that a run starts from."""

    is_same_dataset: bool = False  # whether they were pre-trained on the dataset of the evaluation
    contaminated: bool | None = None  # None: it cannot be told
    reasons: tuple[str, ...] = ()  # sentences that speak against an honest evaluation
    cases: tuple[str, ...] = ()  # validation cases whose patients were seen
    origin: Mapping[str, Any] | None = None  # dataset and fold of the pre-training

    @property
    def record(self) -> dict[str, Any]:
        """For a checkpoint."""
        seen = {"contaminated": self.contaminated, "seen_validation_cases": list(self.cases)}
        if self.origin is None or (self.is_same_dataset and not self.contaminated):
            return seen
        return {**seen, "contamination": list(self.reasons), "pretraining": dict(self.origin)}

    @property
    def warnings(self) -> list[str]:
        """For the log."""
        if self.contaminated is None:
            return [UNKNOWN]
        honest = "The validation result is not an honest one."
        return [f"CONTAMINATED (allow_contamination): {each} {honest}" for each in self.reasons]

    def refuse(self, allowed: bool) -> None:
        """Refuse contaminated weights, unless the user allows them."""
        if not self.contaminated or allowed:
            return
        raise ValueError(
            "these weights have seen what this fold evaluates:\n"
            + "\n".join(f"  {reason}" for reason in self.reasons)
            + "\nFine-tune from a pre-training that has not seen it, or set `allow_contamination: "
            f"true` in the section `weights` (for one run: nnssl_overrides='{OVERRIDE}'), which is "
            "stamped into the checkpoint and the report."
        )


def judge_source(own: Mapping[str, Any], evaluation: Evaluation) -> SourceJudgement:
    """Whether weights have seen what is evaluated.

    A known overlap of another dataset counts like a proof. Fold `all` evaluates training cases, so
    nothing can be told of it.

    Args:
        own: the part under `nnssl` of the checkpoint; empty for a stock one.
    """
    if evaluation.fold == "all":
        return SourceJudgement()
    seen = Seen.of(own, evaluation.dataset.parent)
    found, is_same = check(seen, evaluation), seen.dataset == evaluation.dataset
    against = {"contaminated"} if is_same else {"contaminated", "possible"}
    findings = [finding for finding in found.findings if finding.verdict in against]
    cases = {case for each in findings if each.by == "patient" for case in each.cases}
    return SourceJudgement(
        is_same_dataset=is_same,
        contaminated=True if findings else (False if found.compared else None),
        reasons=tuple(each.text for each in findings),
        cases=tuple(sorted(cases)),
        origin={"dataset": own.get("dataset"), "fold": own.get("fold")},
    )
