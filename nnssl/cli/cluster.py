"""``nnssl_cluster``: cluster maps of a preprocessed dataset, for nnSSLPixelClusteringTrainer.

Without maps the trainer makes them by the defaults of this command. K-means over dense features is
fitted once per fold, on its training cases; every voxel of every case of the fold then gets its
cluster (air: -1). The same command goes on where it was interrupted.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from nnssl.cli.command import WORKERS, command, dataset_id
from nnssl.cluster_maps.fold_maps import DEFAULT_NAME, cluster_dataset
from nnssl.cluster_maps.recipe import ClusterRecipe
from nnssl.nnunet.paths import PREPROCESSED, root_folder


def _add_options(parser: ArgumentParser) -> None:
    default, add = ClusterRecipe(), parser.add_argument
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="nnU-Net dataset, id or name")
    add("-c", required=True, dest="configuration", help="configuration, e.g. 2d or 3d_fullres")
    add("-p", default="nnUNetPlans", dest="plans", help="plans (%(default)s)")
    add("-f", default=["0"], nargs="+", dest="folds", help="each fold gets maps of its own (0)")
    add("--name", default=DEFAULT_NAME, help="of the dense target (%(default)s)")
    add("--source", default=default.source, choices=("handcrafted", "self", "dino"))
    add("-k", type=int, default=default.clusters, dest="clusters", help="clusters (%(default)s)")
    add("--seed", type=int, default=default.seed)
    add("--samples", type=int, default=default.samples, help="voxels for k-means (%(default)s)")
    add("--keep-air", action="store_true", help="clusters for air too, instead of -1")
    add("--scales", type=float, nargs="+", default=default.scales, help="sigmas in voxels")
    add("--position", type=float, default=default.position, help="its weight (%(default)s)")
    add("--checkpoint", help="weights: of nnSSL pre-training (self), a local file (dino)")
    add("--stage", type=int, help="encoder stage (self)")
    add("--model", default=default.model, help="timm's name (dino; %(default)s)")
    add("--size", type=int, default=default.size, help="of a slice in pixels (dino)")
    add("--upsampling", default=default.upsampling, choices=("linear", "bilateral"))
    add("--overwrite", action="store_true", help="replace maps of another recipe")
    add("--workers", type=int, default=WORKERS, help="processes (%(default)s)")


@command("nnssl_cluster", __doc__, _add_options, resumes=True, errors=(RuntimeError,))
def main(options: Namespace) -> None:
    root = root_folder(PREPROCESSED)
    knobs = {
        key: getattr(options, key) for key in ClusterRecipe.__dataclass_fields__ if key != "fold"
    }
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
