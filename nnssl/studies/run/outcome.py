"""What nnU-Net's own files say about a cell of a study: its state, its scores, its labels."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nnssl.common.files import read_json
from nnssl.nnunet.paths import DATASET_FILE, PREPROCESSED, REFERENCES, SUMMARY, find_root
from nnssl.studies.run.attempts import failed
from nnssl.studies.run.places import is_done

if TYPE_CHECKING:
    from nnssl.studies.run.grid import Cell
    from nnssl.studies.run.spec import Study

State = Literal["done", "unfinished", "failed", "missing"]


def state(study_folder: Path, study: Study, cell: Cell) -> State:
    """How far a cell is, judged by nnU-Net's files; only a failure is read from `cell.json`."""
    try:
        fold = cell.fold_folder(study_folder, study)
    except ValueError:  # nnU-Net's name of the dataset is known nowhere yet
        return "missing"
    if is_done(fold, cell.kind):
        return "done"
    if failed(cell.folder(study_folder)):
        return "failed"
    return "unfinished" if fold.is_dir() and any(fold.iterdir()) else "missing"


def scores(fold_folder: Path) -> dict[str, dict[str, float]]:
    """Case -> structure key -> Dice, of nnU-Net's `validation/summary.json`.

    Raises:
        ValueError: the file is broken or holds no cases.
    """
    summary = read_json(fold_folder / SUMMARY)
    try:
        return {
            case_of(entry): {key: _number(m["Dice"]) for key, m in entry["metrics"].items()}
            for entry in summary["metric_per_case"]
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{fold_folder / SUMMARY} is no summary of nnU-Net (no {error}); delete it and "
            "validate again (nnUNetv2_train ... --val)"
        ) from error


def case_of(entry: Mapping[str, Any]) -> str:
    """Case identifier of an entry of `metric_per_case`."""
    return _split(entry["prediction_file"])[0]


def files(fold_folder: Path) -> dict[str, tuple[Path, Path]]:
    """Case -> (predicted, reference) label image; both are found again after a move.

    Raises:
        ValueError: a file is gone.
    """
    entries = read_json(fold_folder / SUMMARY)["metric_per_case"]
    preprocessed = preprocessed_folder(fold_folder)
    return {case_of(entry): _files(fold_folder, preprocessed, entry) for entry in entries}


def preprocessed_folder(fold_folder: Path) -> Path | None:
    """`nnUNet_preprocessed/DatasetXXX_NAME` of a validated run, None where it is gone."""
    roots = filter(None, [find_root(PREPROCESSED)])
    here = [root / fold_folder.parents[1].name for root in roots]
    if (fold_folder / SUMMARY).is_file():
        entries = read_json(fold_folder / SUMMARY)["metric_per_case"]
        here = [Path(entry["reference_file"]).parents[1] for entry in entries[:1]] + here
    return next((folder for folder in here if folder.is_dir()), None)


def structures(fold_folder: Path) -> dict[str, str]:
    """Structure key of the summary (`1`, `(1, 2)`) -> its name in `dataset.json`."""
    labels = _dataset(fold_folder).get("labels", {})
    return {_key(value): name for name, value in labels.items() if name != "ignore"}


def label_values(key: str) -> tuple[int, ...]:
    """Label values of a structure key.

    Raises:
        ValueError: the key is neither a label nor a region.
    """
    value = ast.literal_eval(key)
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def ignore_label(fold_folder: Path) -> int | None:
    """The dataset's ignore label, if it has one."""
    return _dataset(fold_folder).get("labels", {}).get("ignore")


def labelled(fold_folder: Path) -> dict[str, Any]:
    """What `labelled_cases.json` says; empty where a run used every label."""
    path = fold_folder / "labelled_cases.json"
    return read_json(path) if path.is_file() else {}


def _dataset(fold_folder: Path) -> dict[str, Any]:
    path = fold_folder.parent / DATASET_FILE
    return read_json(path) if path.is_file() else {}


def _key(value: Any) -> str:
    """As nnU-Net writes the keys of its summary."""
    return str(tuple(value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _split(file: str) -> tuple[str, str]:
    name = file.replace("\\", "/").rsplit("/", 1)[-1]
    for ending in (".nii.gz", Path(name).suffix):
        if ending and name.endswith(ending):
            return name[: -len(ending)], ending
    return name, ""


def _files(
    fold_folder: Path, preprocessed: Path | None, entry: Mapping[str, Any]
) -> tuple[Path, Path]:
    name = "".join(_split(entry["prediction_file"]))
    predicted = fold_folder / SUMMARY.parent / name
    reference = Path(entry["reference_file"])
    if not reference.is_file() and preprocessed is not None:
        reference = preprocessed / REFERENCES / name
    for path in (predicted, reference):
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist, so HD95 and surface Dice cannot be computed. Validate "
                "the run again (nnUNetv2_train ... --val), or set nnUNet_preprocessed to the "
                "folder that holds the reference segmentations"
            )
    return predicted, reference
