"""Dense targets: integer maps beside every image, and who makes them; so far clusters of voxels.

`DENSE_TARGETS` stands beside `nnssl.objectives.OBJECTIVES`: an objective names the kind of maps it
wants, the registry names who makes them, and no trainer knows either.
"""

from nnssl.cluster_maps.fold_maps import check_maps, describe_maps, make_missing
from nnssl.cluster_maps.makers import Image, Maker, TargetRun

DENSE_TARGETS: dict[str, Maker] = {"clusters": Maker(make_missing, check_maps, describe_maps)}

__all__ = ["DENSE_TARGETS", "Image", "Maker", "TargetRun"]
