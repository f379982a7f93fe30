"""What nnU-Net's files say against the runs of a study, before the first of them begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json
from nnssl.data.labels import LabelBudget, choose_labelled, refuse_budget_for_all
from nnssl.nnunet.cases import read_all_cases, read_cases
from nnssl.nnunet.images import image_file, list_cases, open_image
from nnssl.nnunet.paths import PREPROCESSED, dataset_name, root_folder
from nnssl.nnunet.splits import Split, foresee_splits
from nnssl.studies.run.grid import Cell


def find_data_problems(cells: Sequence[Cell], configuration: str) -> Iterator[str]:
    """Sentences on datasets, plans, folds and label budgets that the runs would stop at."""
    for dataset, plans in dict.fromkeys((cell.dataset, cell.plans) for cell in cells):
        some = [cell for cell in cells if (cell.dataset, cell.plans) == (dataset, plans)]
        try:
            images = _find_images(dataset, plans, configuration)
        except ValueError as error:
            yield str(error)
        else:
            yield from _check_folds(some, images, configuration.startswith("2d"))


def _find_images(dataset: int | str, plans: str, configuration: str) -> Path:
    """nnU-Net's folder of preprocessed cases; ValueError where there is none of these plans."""
    root = root_folder(PREPROCESSED)
    folder = root / dataset_name(dataset, root)
    file = folder / f"{plans}.json"
    if not file.is_file():
        known = [f.stem for f in sorted(folder.glob("*.json")) if _holds_plans(f)]
        raise ValueError(f"plans: {file} does not exist; {folder.name} has {known or 'none'}")
    content: dict[str, Any] = read_json(file)
    if configuration not in content["configurations"]:
        known = sorted(content["configurations"])
        raise ValueError(f"configuration: found {configuration!r}; {file} has {', '.join(known)}")
    plan = content["configurations"][configuration]
    while "data_identifier" not in plan:  # of the configuration that it inherits from
        plan = content["configurations"][plan["inherits_from"]]
    images = folder / str(plan["data_identifier"])
    if not images.is_dir() or not list_cases(images):
        raise ValueError(
            f"{images} holds no preprocessed image; nnUNetv2_preprocess -d {dataset} "
            f"-plans_name {plans} -c {configuration}"
        )
    return images


def _holds_plans(file: Path) -> bool:
    content = read_json(file, Any)
    return isinstance(content, dict) and "configurations" in content


def _check_folds(cells: Sequence[Cell], images: Path, slices: bool) -> Iterator[str]:
    dataset = images.parent
    records = read_all_cases(dataset, "Tr") or read_cases(dataset, list_cases(images))
    splits = foresee_splits(dataset, records)
    for cell in cells:
        try:
            _check_fold(cell, splits, images, slices)
        except ValueError as error:
            yield f"fold {cell.fold} of {dataset.name}: {error}"


def _check_fold(cell: Cell, splits: Split, images: Path, slices: bool) -> None:
    """Raises ValueError where the fold does not exist, or has too few labels for the budget."""
    labels = {
        knob.removeprefix("labels."): value
        for knob, value in cell.overrides.items()
        if knob.startswith("labels.")
    }
    budget = LabelBudget(**labels)
    refuse_budget_for_all(budget, cell.fold)
    if cell.fold == "all":
        return
    if int(cell.fold) >= len(splits):
        raise ValueError(f"there are {len(splits)} folds; allowed are 0 to {len(splits) - 1}")
    train = splits[int(cell.fold)]["train"]
    if cell.kind == "finetune":
        depth = partial(_count_slices, images) if slices else None
        choose_labelled(budget, train, read_cases(images.parent, train), depth)


def _count_slices(images: Path, case: str) -> int:
    return int(open_image(image_file(images, case)).shape[1])
