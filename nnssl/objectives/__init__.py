"""Pretext tasks: one file per method, one line in `OBJECTIVES`, one YAML, one test."""

from collections.abc import Mapping
from typing import Any

from nnssl.objectives.base import Batch, Context, DenseTargets, Objective
from nnssl.objectives.byol import BYOLObjective
from nnssl.objectives.clustering import ClusteringObjective
from nnssl.objectives.contrastive import ContrastiveObjective
from nnssl.objectives.cpc import CPCObjective
from nnssl.objectives.dataset_contrastive import DatasetContrastiveObjective
from nnssl.objectives.dense_byol import DenseBYOLObjective
from nnssl.objectives.exemplar import ExemplarObjective
from nnssl.objectives.jigsaw import JigsawObjective
from nnssl.objectives.joint import JointObjective
from nnssl.objectives.local_contrastive import LocalContrastiveObjective
from nnssl.objectives.mae import MAEObjective
from nnssl.objectives.models_genesis import ModelsGenesisObjective
from nnssl.objectives.pcrlv2 import PCRLv2Objective
from nnssl.objectives.pixel_clustering import PixelClusteringObjective
from nnssl.objectives.relative_patch import RelativePatchObjective
from nnssl.objectives.rotation import RotationObjective
from nnssl.objectives.spark import SparkObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": ContrastiveObjective,
    "local_contrastive": LocalContrastiveObjective,
    "pixel_clustering": PixelClusteringObjective,
    "clustering": ClusteringObjective,
    "mae": MAEObjective,
    "models_genesis": ModelsGenesisObjective,
    "spark": SparkObjective,
    "pcrlv2": PCRLv2Objective,
    "cpc": CPCObjective,
    "exemplar": ExemplarObjective,
    "rotation": RotationObjective,
    "relative_patch": RelativePatchObjective,
    "byol": BYOLObjective,
    "dense_byol": DenseBYOLObjective,
    "dataset_contrastive": DatasetContrastiveObjective,
    "joint": JointObjective,
    "jigsaw": JigsawObjective,
}


def find_objective(name: str, knobs: Mapping[str, Any]) -> type[Objective]:
    """The class of an objective; that of a joint one follows from its parts.

    Raises:
        ValueError: parts that cannot be joined.
    """
    kind = OBJECTIVES[name]
    if issubclass(kind, JointObjective):
        parts = knobs.get("parts", {})
        return kind.of({part: OBJECTIVES[part] for part in parts}, parts)
    return kind


__all__ = ["OBJECTIVES", "Batch", "Context", "DenseTargets", "Objective", "find_objective"]
