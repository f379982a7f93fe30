"""From a dataset number to the task of making its cluster maps, and the check before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnssl.cluster_maps import recipe as recipes
from nnssl.cluster_maps.maps import MapJob, make_maps
from nnssl.cluster_maps.recipe import ClusterRecipe, Image
from nnssl.common.files import read_json, write_json
from nnssl.common.locks import held
from nnssl.data.pretraining_data import DataFolders
from nnssl.data.unlabelled.preprocess import complete
from nnssl.data.unlabelled.records import pools, voxels_hash
from nnssl.nnunet import folds
from nnssl.nnunet.splits import SPLITS_FILE

DEFAULT_NAME = "clusters"  # of the dense targets
LOCKS = "locks"  # beside the folders of the folds
SEGMENTATION = "_seg"  # ends the names of nnU-Net's files of labels


def cluster_dataset(
    root: Path,
    dataset_id: int,
    configuration: str,
    plans_name: str,
    recipe: ClusterRecipe,
    name: str,
    workers: int,
) -> tuple[Path, list[float]]:
    """Make the cluster maps of a configuration.

    Args:
        root: `nnUNet_preprocessed`.
        dataset_id, configuration, plans_name: as in nnU-Net's commands.
        recipe: the knobs.
        name: of the dense target.
        workers: processes.

    Maps that another process is making are waited for.

    Returns:
        The folder of the maps and the share of each cluster.

    Raises:
        ValueError: dataset, plans, configuration or preprocessed images are not there.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset = _dataset(root, dataset_id)
    file = dataset / f"{plans_name}.json"
    if not file.is_file():
        raise ValueError(f"{file} does not exist; plan first: nnUNetv2_plan_experiment")
    plans = read_json(file)
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise ValueError(f"-c: found {configuration}, {file.name} has {known}")
    manager = PlansManager(plans).get_configuration(configuration)
    folders = DataFolders.of(dataset / manager.data_identifier, recipe.fold)
    if not folders.preprocessed.is_dir():
        raise ValueError(f"{folders.preprocessed} does not exist; run first: nnUNetv2_preprocess")
    training, cases = fold_cases(folders.preprocessed, recipe.fold)
    patch = tuple(int(n) for n in manager.patch_size)
    spacing = tuple(float(s) for s in manager.spacing)[-len(patch) :]
    job = MapJob(folders.preprocessed, folders.dense_target(name), recipe, spacing, patch)
    images = [*map(Image, cases), *_without_labels(folders.own)]
    with held(job.folder.parent / LOCKS / job.folder.name):
        shares = make_maps(job, plans, manager.configuration, training, images, workers)
    return job.folder, shares


def fold_cases(preprocessed: Path, fold: int | str) -> tuple[list[str], list[str]]:
    """Training cases of a fold, and training and validation cases together."""
    cases = sorted({_identifier(file) for file in preprocessed.iterdir() if _is_image(file)})
    if fold == "all":
        return cases, cases
    folds.check(preprocessed, fold)
    file = preprocessed.parent / SPLITS_FILE
    if not file.is_file():
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        write_json(file, generate_crossval_split(cases, seed=12345, n_splits=5))  # as nnU-Net does
    split = read_json(file)[int(fold)]
    return sorted(split["train"]), sorted([*split["train"], *split["val"]])


def make_dense_targets(trainer: Any) -> None:
    """Make the cluster maps that a run lacks; what it has is left to `check_dense_targets`.

    Maps of the default name are made by the default recipe. Maps whose making was interrupted, or
    that lack images without labels, are completed by their own recipe, whatever their name.

    Args:
        trainer: an initialised pre-trainer; of several processes one works and the others wait.
    """
    for name in trainer.objective.dense_targets:
        recipe = _recipe(trainer, name)
        if recipe is None:
            continue
        trainer.print_to_log_file(
            f"Cluster maps {name!r} of fold {trainer.fold} are made ({recipe.source} features, "
            f"{recipe.clusters} clusters); nnssl_cluster makes others"
        )
        cluster_dataset(
            Path(trainer.preprocessed_dataset_folder_base).parent,
            _number(trainer),
            trainer.configuration_name,
            trainer.plans_manager.plans_name,
            recipe,
            name,
            max(1, get_allowed_n_proc_DA()),
        )


def _recipe(trainer: Any, name: str) -> ClusterRecipe | None:
    """By what missing maps are to be made; None where none are missing or others are there."""
    found = recipes.stored(trainer.folders.dense_target(name))
    if not found:
        count = getattr(trainer.objective, "count", ClusterRecipe.clusters)
        return ClusterRecipe(clusters=count, fold=trainer.fold) if name == DEFAULT_NAME else None
    images, hashes = _images(trainer), _hashes(trainer)
    if any(found[key] != value for key, value in hashes.items()):
        return None
    if all(image.is_mapped(trainer.folders.dense_target(name)) for image in images):
        return None
    return ClusterRecipe(**{**found["recipe"], "scales": tuple(found["recipe"]["scales"])})


def check_dense_targets(trainer: Any) -> None:
    """Refuse a pre-training run whose cluster maps are missing or were made for another one.

    Args:
        trainer: an initialised pre-trainer.

    Raises:
        ValueError: with the command that makes them.
    """
    for name in trainer.objective.dense_targets:
        clusters = getattr(trainer.objective, "count", None)
        command = (
            f"nnssl_cluster -d {_number(trainer)} -c {trainer.configuration_name} "
            f"-p {trainer.plans_manager.plans_name} -f {trainer.fold} --name {name}"
        )
        recipes.check_run(
            trainer.folders.dense_target(name),
            command if clusters is None else f"{command} -k {clusters}",
            trainer.fold,
            images=_images(trainer),
            clusters=clusters,
            **_hashes(trainer),
        )


def _without_labels(own: Path) -> list[Image]:
    """Every image of `nnssl_preprocess_unlabelled`; the run chooses which of them it may see."""
    found = pools(own).values()
    return [Image(image.identifier, folder) for folder in found for image in complete(folder)]


def _images(trainer: Any) -> list[Image]:
    """All that the run reads."""
    return [Image(c.identifier, c.folder) for c in (*trainer.drawn_cases, *trainer.val_cases)]


def _hashes(trainer: Any) -> dict[str, str]:
    """What the run's maps must have been made from."""
    plans, configuration = trainer.plans_manager.plans, trainer.configuration_manager.configuration
    names = sorted({case.identifier for case in trainer.train_cases})
    return {
        "plans": voxels_hash(plans, configuration),
        "cases": recipes.cases_hash(trainer.folders.preprocessed, names),
    }


def _number(trainer: Any) -> int:
    return int(trainer.plans_manager.dataset_name[len("Dataset") :].split("_")[0])


def _dataset(root: Path, number: int) -> Path:
    found = sorted(root.glob(f"Dataset{number:03d}_*"))
    if len(found) != 1:
        names = [folder.name for folder in found] or "none"
        raise ValueError(f"{root} must have one folder of dataset {number}; found {names}")
    return found[0]


def _is_image(file: Path) -> bool:
    return file.suffix in (".b2nd", ".npy", ".npz") and not file.stem.endswith(SEGMENTATION)


def _identifier(file: Path) -> str:
    return file.stem
