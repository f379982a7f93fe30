"""``nnssl_cluster``: cluster maps of a preprocessed dataset, for nnSSLPixelClusteringTrainer.

Without maps the trainer makes them by the defaults of this command. K-means over dense features is
fitted once per fold, on its training cases; every voxel of every case of the fold then gets its
cluster (air: -1). The same command goes on where it was interrupted.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from nnssl.cli.command import WORKERS, command, dataset_id
from nnssl.nnunet.paths import PREPROCESSED, root_folder


def _add_options(parser: ArgumentParser) -> None:
    # what is not given here is decided by `ClusterRecipe`; a test compares the texts with it
    add = parser.add_argument
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="nnU-Net dataset, id or name")
    add("-c", required=True, dest="configuration", help="configuration, e.g. 2d or 3d_fullres")
    add("-p", default="nnUNetPlans", dest="plans", help="plans (%(default)s)")
    add("-f", default=["0"], nargs="+", dest="folds", help="each fold gets maps of its own (0)")
    add("--name", default="clusters", help="of the dense target (%(default)s)")
    text = "what k-means sees: filters, a pre-trained network, a vision transformer (handcrafted)"
    add("--source", choices=("handcrafted", "self", "dino"), help=text)
    add("-k", type=int, dest="clusters", help="clusters (50)")
    add("--seed", type=int, help="of sampled voxels and k-means (0)")
    add("--samples", type=int, help="voxels for k-means (200000)")
    add("--keep-air", action="store_true", help="clusters for air too, instead of -1")
    add("--scales", type=float, nargs="+", help="sigmas in voxels (1 2 4; handcrafted)")
    add("--position", type=float, help="weight of the place (2; handcrafted)")
    add("--checkpoint", help="weights: of nnSSL pre-training (self), a local file (dino)")
    add("--stage", type=int, help="encoder stage (self)")
    add("--model", help="timm's name (vit_small_patch16_224.dino)")
    add("--size", type=int, help="of a slice in pixels (448; dino)")
    text = "of features to voxels (bilateral; self, dino)"
    add("--upsampling", choices=("linear", "bilateral"), help=text)
    add("--overwrite", action="store_true", help="replace maps of another recipe")
    add("--workers", type=int, default=WORKERS, help="processes (%(default)s)")


@command(
    "nnssl_cluster",
    __doc__,
    _add_options,
    example="-d 27 -c 2d -f 0",
    resumes=True,
    errors=(RuntimeError,),
)
def main(options: Namespace) -> None:
    from nnssl.cluster_maps.fold_maps import cluster_dataset
    from nnssl.cluster_maps.recipe import ClusterRecipe

    root = root_folder(PREPROCESSED)
    names = [key for key in ClusterRecipe.__dataclass_fields__ if key != "fold"]
    knobs = {key: found for key in names if (found := getattr(options, key)) is not None}
    if options.scales:
        knobs["scales"] = tuple(options.scales)
    for fold in [_fold(text) for text in options.folds]:
        recipe = ClusterRecipe(**knobs, fold=fold)
        where = (options.dataset_id, options.configuration, options.plans)
        how = (options.name, options.workers, options.overwrite)
        folder, shares = cluster_dataset(root, *where, recipe, *how)
        print(
            f"{folder}: {recipe.clusters} clusters, shares {[round(s, 3) for s in shares]}\n"
            f"next: nnUNetv2_train {options.dataset_id} {options.configuration} {fold} "
            f"-p {options.plans} -tr nnSSLPixelClusteringTrainer"
        )


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise ValueError(f"-f: found {text}, allowed are numbers from 0 and all")
    return text if text == "all" else int(text)
