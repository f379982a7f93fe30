"""Knobs of the probe (section `probe` of a YAML): when, with how many labels, beside what."""

from __future__ import annotations

from dataclasses import dataclass

from nnssl.common.checks import Count, Whole, checked


@checked
@dataclass(frozen=True)
class ProbeSettings:
    """When the frozen features are probed, with how many labels, and beside what.

    The labels are read by the probe only; training reads none, and nothing chooses by the result.

    Attributes:
        probe_every: epochs between two probes; 0: none during training.
        probe_at_end: whether the finished run is probed.
        probe_patients: labelled training patients on which the linear classifier is fitted, drawn
            as in section `labels` of fine-tuning (draw r: `labels.seed=r`).
        probe_draws: how many times they are drawn; the Dice is the mean over draws.
        probe_volumes: validation volumes at most, of as many patients as possible.
        probe_shortcut: whether a task with right and wrong answers is also asked about images that
            show nothing (`nnssl.probe.shortcuts`), and the log warns where it is not guessing.
        reference: another checkpoint (nnSSL's or nnU-Net's, of the same plans) to probe as well.
    """

    probe_every: Whole = 0
    probe_at_end: bool = True
    probe_patients: Count = 2
    probe_draws: Count = 4
    probe_volumes: Count = 20
    probe_shortcut: bool = True
    reference: str | None = None

    @property
    def active(self) -> bool:
        return self.probe_every > 0 or self.probe_at_end

    def is_due(self, epochs: int, of: int) -> bool:
        """Whether to probe after so many epochs `of` the run's."""
        if epochs >= of:
            return self.probe_at_end
        return self.probe_every > 0 and epochs % self.probe_every == 0
