"""What cluster maps are made of, and whether those on the disk are these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen
from typing_extensions import TypedDict

from nnssl.common.checks import Count, NotNegative, Positive, Whole, checked, plain
from nnssl.common.files import hash_file, hash_json, read_json
from nnssl.data.unlabelled.records import hash_preprocessing
from nnssl.nnunet.checkpoint import require_file
from nnssl.nnunet.images import image_file

Source = Literal["handcrafted", "self", "dino"]
MANIFEST = "manifest.json"


@checked
@dataclass(frozen=True)
class ClusterRecipe:
    """Knobs of the maps; another value makes other maps.

    Attributes:
        source: `handcrafted` (smoothed intensity, gradient magnitude and Laplacian at several
            scales, position), `self` (a stage of a pre-trained nnSSL network), or `dino` (a vision
            transformer of timm, slice by slice).
        clusters: number K.
        seed: of the sampled voxels and of k-means.
        fold: k-means sees the training cases of this fold only.
        samples: voxels that k-means sees, equally many of every case.
        keep_air: whether air, too, gets clusters instead of -1.
        scales: sigmas in voxels of the finest axis (handcrafted).
        position: weight of the position relative to the volume (handcrafted).
        checkpoint: file of the weights (self; for dino a local file in the place of the hub).
        stage: encoder stage (self), null: the deepest with at most 8 voxels per cell and axis.
        model: timm's name (dino).
        size: longer side of a slice as the transformer sees it, in pixels (dino).
        upsampling: `linear` or `bilateral` (self, dino).
    """

    source: Source = "handcrafted"
    clusters: Annotated[int, Interval(ge=2, le=30_000)] = 50
    seed: Whole = 0
    fold: int | str = 0
    samples: Count = 200_000
    keep_air: bool = False
    scales: Annotated[tuple[Positive, ...], MinLen(1)] = (1.0, 2.0, 4.0)
    position: NotNegative = 2.0
    checkpoint: str | None = None
    stage: Whole | None = None
    model: str = "vit_small_patch16_224.dino"
    size: Count = 448
    upsampling: Literal["linear", "bilateral"] = "bilateral"

    def __post_init__(self) -> None:
        if self.samples < 10 * self.clusters:
            raise ValueError(
                f"samples: found {self.samples}, allowed from {10 * self.clusters} (10 per cluster)"
            )
        if self.source == "self" and self.checkpoint is None:
            raise ValueError("source self needs --checkpoint, a pre-training checkpoint of nnSSL")
        if self.checkpoint is not None:
            require_file(Path(self.checkpoint))


def make_manifest(
    recipe: ClusterRecipe,
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    preprocessed: Path,
    training: Sequence[str],
) -> dict[str, Any]:
    """What identifies maps: the recipe, and hashes of plans, training cases and weights."""
    return {
        "recipe": plain(asdict(recipe)),
        "plans": hash_preprocessing(plans, configuration),
        "cases": hash_cases(preprocessed, training),
        "weights": recipe.checkpoint and hash_file(Path(recipe.checkpoint)),
    }


def hash_cases(preprocessed: Path, identifiers: Sequence[str]) -> str:
    """Hash of the cases' identifiers and of the sizes of their files."""
    return hash_json(
        {name: image_file(preprocessed, name).stat().st_size for name in sorted(identifiers)}
    )


class _Manifest(TypedDict):
    recipe: dict[str, Any]
    plans: str
    cases: str


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of maps; empty where there is none."""
    file = folder / MANIFEST
    return read_json(file, _Manifest) if file.is_file() else {}


def is_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two manifests describe the same maps."""
    return all(a.get(key) == b.get(key) for key in ("recipe", "plans", "cases", "weights"))
