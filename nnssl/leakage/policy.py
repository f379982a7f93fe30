"""What follows for weights that have seen, or may have seen, what they are evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnssl.leakage.ancestry import UNKNOWN, Ancestor
from nnssl.leakage.check import Evaluation, check
from nnssl.leakage.seen import Seen

OVERRIDE = "weights.allow_contamination=true"
UNTOLD = "it cannot be told whether the weights have seen the patients that validate here"


@dataclass(frozen=True)
class SourceJudgement:
    """What is to be said of weights that a run starts from."""

    is_same_dataset: bool = False  # whether they were pre-trained on the dataset of the evaluation
    contaminated: bool | None = None  # None: it cannot be told
    reasons: tuple[str, ...] = ()  # sentences that speak against an honest evaluation
    cases: tuple[str, ...] = ()  # validation cases whose patients were seen
    origin: Mapping[str, Any] | None = None  # dataset and fold of the training that wrote them
    untold: tuple[str, ...] = ()  # why it cannot be told
    ancestors: Sequence[Ancestor] = (UNKNOWN,)  # for the checkpoint that starts from them

    @property
    def record(self) -> dict[str, Any]:
        """For a checkpoint, beside the ancestors."""
        seen = {"contaminated": self.contaminated, "seen_validation_cases": list(self.cases)}
        if self.contaminated is None:
            seen["cannot_be_told"] = list(self.untold)
        if self.origin is None or (self.is_same_dataset and not self.contaminated):
            return seen
        return {**seen, "contamination": list(self.reasons), "pretraining": dict(self.origin)}

    @property
    def warnings(self) -> list[str]:
        """For the log."""
        if self.contaminated is None:
            return [f"{UNTOLD}: {' '.join(self.untold)}" if self.untold else f"{UNTOLD}."]
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


def judge(ancestors: Sequence[Ancestor], evaluation: Evaluation) -> SourceJudgement:
    """Whether weights, or those that they started from, have seen what is evaluated.

    A known overlap of another dataset counts like a proof. Fold `all` evaluates training cases, so
    nothing can be told of it.

    Args:
        ancestors: of the weights, the training that wrote them first; see `trace_ancestry`.
        evaluation: with its folder, so that images can be compared.
    """
    if evaluation.fold == "all":
        return SourceJudgement(ancestors=ancestors)
    lineage = [Seen.of(each, evaluation.dataset.parent) for each in ancestors]
    proven, untold = [], []
    for seen in lineage:
        is_same = seen.dataset == evaluation.dataset
        against = {"contaminated"} if is_same else {"contaminated", "possible"}
        for finding in check(seen, evaluation, "strangers").findings:
            if finding.verdict in against:
                proven.append(finding)
            elif finding.verdict != "clean":
                untold.append(finding)
    by_case = [each for each in proven if each.by not in ("fold", "dataset")]
    return SourceJudgement(
        is_same_dataset=lineage[0].dataset == evaluation.dataset,
        contaminated=True if proven else None if untold else False,
        reasons=tuple(dict.fromkeys(each.text for each in proven)),
        cases=tuple(sorted({case for each in by_case for case in each.cases})),
        origin={key: ancestors[0].get(key) for key in ("dataset", "fold")},
        untold=tuple(dict.fromkeys(each.text for each in untold)),
        ancestors=ancestors,
    )
