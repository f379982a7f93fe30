"""The cluster maps of one fold: made by a command or for a run, and checked before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnssl.cluster_maps.makers import Image, TargetRun
from nnssl.cluster_maps.maps import MapJob, make_maps
from nnssl.cluster_maps.recipe import MANIFEST, ClusterRecipe, hash_cases, read_manifest
from nnssl.common.files import write_json
from nnssl.common.locks import hold
from nnssl.data.case_table import DataFolders
from nnssl.data.pool.preprocess import RECORDS
from nnssl.data.tissue_share import CACHE
from nnssl.data.unlabelled.records import (
    UNLABELLED,
    find_collections,
    hash_preprocessing,
    read_images,
)
from nnssl.nnunet.images import list_cases
from nnssl.nnunet.paths import (
    RANDOM_ENCODERS,
    SPLITS_FILE,
    cache_places,
    check_name,
    dataset_number,
    plans_file,
)
from nnssl.nnunet.plans import read_plans
from nnssl.nnunet.splits import check_fold, draw_stock_splits, read_fold
from nnssl.objectives import DenseTargets

DEFAULT_NAME = "clusters"  # of the dense targets
# other folders beside those of dense targets
RESERVED = (UNLABELLED, CACHE, RECORDS, RANDOM_ENCODERS)
LOCKS = "locks"  # beside the folders of the folds


def cluster_dataset(
    root: Path,
    dataset_id: int,
    configuration: str,
    plans_name: str,
    recipe: ClusterRecipe,
    name: str,
    workers: int,
    overwrite: bool = False,
) -> tuple[Path, list[float]]:
    """Make the cluster maps of a configuration; maps that another process is making are waited for.

    Returns:
        The folder of the maps and the share of each cluster.

    Raises:
        ValueError: dataset, plans, configuration or preprocessed images are not there; or the maps
            of this name are others, and `overwrite` is not said.
    """
    file = plans_file(dataset_id, plans_name, root)
    plans = read_plans(file, configuration)
    identifier = _find_configuration(plans, configuration)["data_identifier"]
    folders = DataFolders(file.parent / identifier, recipe.fold)
    if not folders.preprocessed.is_dir():
        raise ValueError(f"{folders.preprocessed} does not exist; run first: nnUNetv2_preprocess")
    training, cases = list_fold_cases(folders.preprocessed, recipe.fold)
    images = list(map(Image, cases))
    for folder in find_collections(folders.own).values():  # the run chooses which it may see
        images += [Image(image.identifier, folder) for image in read_images(folder)]
    run = TargetRun(folders, plans, configuration, tuple(training), tuple(images))
    return _make(run, recipe, name, workers, overwrite)


def _make(
    run: TargetRun, recipe: ClusterRecipe, name: str, workers: int, overwrite: bool = False
) -> tuple[Path, list[float]]:
    check_name(name, "--name", RESERVED)
    folders, planned = run.folders, _find_configuration(run.plans, run.configuration)
    patch = tuple(int(n) for n in planned["patch_size"])
    spacing = tuple(float(s) for s in planned["spacing"])[-len(patch) :]
    place = cache_places(folders.dense_target(name))[0]
    job = MapJob(folders.preprocessed, place, recipe, spacing, patch)
    with hold(job.folder.parent / LOCKS / job.folder.name):
        shares = make_maps(job, run.plans, planned, run.training, run.images, workers, overwrite)
        return job.folder, shares


def list_fold_cases(preprocessed: Path, fold: int | str) -> tuple[list[str], list[str]]:
    """Training cases of a fold, and training and validation cases together."""
    cases = list_cases(preprocessed)
    if fold == "all":
        return cases, cases
    check_fold(preprocessed, fold)
    file = preprocessed.parent / SPLITS_FILE
    if not file.is_file():
        write_json(file, draw_stock_splits(cases))  # as nnU-Net does
    train, val = read_fold(preprocessed.parent, fold)
    return train, sorted([*train, *val])


def make_missing(wanted: DenseTargets, run: TargetRun, log: Callable[[str], None]) -> None:
    """Make the cluster maps that a run lacks; what it has is left to `check_maps`.

    Maps of the default name are made by the default recipe. Maps whose making was interrupted, or
    that lack images without labels, are completed by their own recipe, whatever their name.
    """
    recipe = _choose_recipe(wanted, run)
    if recipe is None:
        return
    log(
        f"Cluster maps {wanted.name!r} of fold {run.folders.fold} are made ({recipe.source} "
        f"features, {recipe.clusters} clusters); nnssl_cluster makes others"
    )
    workers = max(1, get_allowed_n_proc_DA())
    _make(run, recipe, wanted.name, workers)


def _choose_recipe(wanted: DenseTargets, run: TargetRun) -> ClusterRecipe | None:
    """By what missing maps are to be made; None where none are missing or others are there."""
    folder = run.folders.dense_target(wanted.name)
    found = read_manifest(folder)
    if not found:
        known = wanted.name == DEFAULT_NAME
        return ClusterRecipe(clusters=wanted.classes, fold=run.folders.fold) if known else None
    if any(found[key] != value for key, value in _hash_sources(run).items()):
        return None
    if all(image.is_mapped(folder) for image in run.images):
        return None
    knobs = found["recipe"]
    return ClusterRecipe(**{**knobs, "scales": tuple(knobs["scales"])})


def check_maps(wanted: DenseTargets, run: TargetRun) -> None:
    """Refuse a pre-training run whose cluster maps are missing or were made for another one."""
    check_name(wanted.name, "objective.maps", RESERVED)
    folder = run.folders.dense_target(wanted.name)
    problem = _find_problem(folder, wanted, run)
    if problem:
        number = dataset_number(run.plans["dataset_name"])
        raise ValueError(
            f"cluster maps in {folder}: {problem}. Make them with: nnssl_cluster -d {number} "
            f"-c {run.configuration} -p {run.plans['plans_name']} -f {run.folders.fold} "
            f"--name {wanted.name} -k {wanted.classes}"
        )


def describe_maps(wanted: DenseTargets, run: TargetRun) -> dict[str, Any]:
    """The recipe of maps that are there; weights by their content."""
    found = read_manifest(run.folders.dense_target(wanted.name))
    return {**found.get("recipe", {}), "checkpoint": found.get("weights")} if found else {}


def _find_problem(folder: Path, wanted: DenseTargets, run: TargetRun) -> str | None:
    found, fold, hashes = read_manifest(folder), run.folders.fold, _hash_sources(run)
    if not found:
        made = sorted(file.parent.name for file in folder.parent.glob(f"fold_*/{MANIFEST}"))
        return f"none were made for fold {fold} (made: {', '.join(made) or 'none'})"
    recipe = found["recipe"]
    if recipe["fold"] != fold:
        return f"made for fold {recipe['fold']}, this run is of fold {fold}"
    if found["plans"] != hashes["plans"]:
        return "made from other plans (spacing, normalisation or resampling differ)"
    if found["cases"] != hashes["cases"]:
        return "fitted on other training cases, or these were preprocessed again"
    if recipe["clusters"] != wanted.classes:
        return f"made with {recipe['clusters']} clusters, objective.clusters is {wanted.classes}"
    missing = [image.identifier for image in run.images if not image.is_mapped(folder)]
    return f"{len(missing)} images have no map, for instance {missing[0]}" if missing else None


def _hash_sources(run: TargetRun) -> dict[str, str]:
    """What the run's maps must have been made from."""
    return {
        "plans": hash_preprocessing(run.plans, _find_configuration(run.plans, run.configuration)),
        "cases": hash_cases(run.folders.preprocessed, run.training),
    }


def _find_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The planned configuration, with what it inherits."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    found: dict[str, Any] = PlansManager(dict(plans)).get_configuration(name).configuration
    return found
