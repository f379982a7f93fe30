"""Pretext tasks. A new one is one file here, one line in `OBJECTIVES`, one YAML and one test."""

from nnssl.objectives.base import Batch, Context, Objective
from nnssl.objectives.contrastive import ContrastiveObjective

OBJECTIVES: dict[str, type[Objective]] = {"contrastive": ContrastiveObjective}

__all__ = ["OBJECTIVES", "Batch", "Context", "Objective"]
