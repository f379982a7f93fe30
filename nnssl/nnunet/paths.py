"""Where nnU-Net keeps things, and where nnSSL keeps its own beside them.

::

    nnUNet_raw/DatasetXXX_NAME/             dataset.json, imagesTr, labelsTr, imagesTs
    nnUNet_preprocessed/DatasetXXX_NAME/    dataset.json, PLANS.json, splits_final.json
        DATA_IDENTIFIER/                    preprocessed cases; nothing of ours is written here
        nnssl/cases.json                    patient and origin of every case
        nnssl/DATA_IDENTIFIER/              caches, dense targets, images without labels
    nnUNet_results/nnssl_caches/            caches and dense targets of what cannot be written
    nnUNet_results/DatasetXXX_NAME/TRAINER__PLANS__CONFIGURATION/
        plans.json, dataset.json
        fold_F/                             checkpoints, training_log_*.txt, validation/summary.json
                                            resolved_config.yaml, labelled_cases.json, probe.json,
                                            transfer.json, report.html
            former_1/                       a run that was set aside (training.overwrite)
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.common.checks import suggest
from nnssl.common.environment import read_variable

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
TRAINING_IMAGES, TRAINING_LABELS, TEST_IMAGES = "imagesTr", "labelsTr", "imagesTs"
REFERENCES = "gt_segmentations"  # labels of the training cases, beside the preprocessed ones
DATASET_FILE, PLANS_FILE = "dataset.json", "plans.json"
SPLITS_FILE = "splits_final.json"
OWN = "nnssl"  # nnSSL's folder in a preprocessed dataset
CACHES = "nnssl_caches"  # in `nnUNet_results`
CASES_FILE = Path(OWN) / "cases.json"
RANDOM_ENCODERS = "random_encoders"  # beside the caches: what the probe found of them
PATIENT_KEY = ".nnssl_patient_key"  # in nnUNet_raw: the secret of the names of DICOM patients
FINAL, LATEST, BEST = "checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"
CHECKPOINTS = (FINAL, LATEST, BEST)  # in the order in which `--c` looks for them
SUMMARY = Path("validation") / "summary.json"
ADAPTATION_PLAN_FILE = "adaptation_plan.json"  # of DKFZ's nnssl, beside weights
CONFIG_FILE, LABELLED_FILE = "resolved_config.yaml", "labelled_cases.json"  # ours, of a run
PROBE_FILE = "probe.json"
TRANSFER_FILE = "transfer.json"  # what of the weights was loaded, beside the log
FORMER = "former_"  # begins the names of folders of runs that were set aside
WEIGHTS = "nnssl_pretrained_weights"  # variable that names the checkpoint to start from
MOST_NAMED = 10  # datasets in a message
_PLAIN_NAME = re.compile(r"[^\W_][\w.+-]*")
_CHANNEL = re.compile(r"_\d{4}$")  # ends the stem of a raw image of one channel


def check_name(name: str, option: str, reserved: Collection[str] = ()) -> None:
    """Refuse a name that leads out of a folder, or that something else in the folder has.

    Raises:
        ValueError: with the option that gave it, what was found and what is allowed.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(
            f"{option}: found {name!r}, allowed is a plain name: letters, digits and . _ + -, "
            "a letter or digit first"
        )
    if name in reserved:
        raise ValueError(f"{option}: {name!r} is the name of something else; choose another")


def find_root(variable: str) -> Path | None:
    """The folder that one of nnU-Net's three variables names; None where it is not set."""
    text = read_variable(variable)
    return Path(text) if text else None


def root_folder(variable: str) -> Path:
    """As `find_root`; raises ValueError where the variable is not set."""
    folder = find_root(variable)
    if folder is None:
        raise ValueError(
            f"the environment variable {variable} is not set; export {variable}=FOLDER"
        )
    return folder


def dataset_prefix(number: int) -> str:
    """`Dataset027_` of 27."""
    return f"Dataset{number:03d}_"


def dataset_number(name: str) -> int:
    """27 of `Dataset027_ACDC`."""
    return int(name.removeprefix("Dataset").split("_")[0])


def find_dataset_names(dataset: int | str, *roots: Path) -> list[str]:
    """Names of the folders of a dataset, given by its number or name, in any of the roots."""
    text = str(dataset)
    if text.isdecimal():
        prefix = dataset_prefix(int(text))
        return sorted({folder.name for root in roots for folder in root.glob(f"{prefix}*")})
    return [text] if any((root / text).is_dir() for root in roots) else []


def dataset_name(dataset: int | str, *roots: Path) -> str:
    """The full name (`Dataset027_ACDC`) of a dataset, given by its number or name.

    Raises:
        ValueError: the roots have no folder of it, or folders of several names.
    """
    found = find_dataset_names(dataset, *roots)
    if len(found) != 1:
        where = " and ".join(map(str, roots)) or f"neither {PREPROCESSED} nor {RAW} is set"
        there = sorted({folder.name for root in roots for folder in root.glob("Dataset???_*")})
        known = f"; there are {', '.join(there)}" * (0 < len(there) <= MOST_NAMED and not found)
        raise ValueError(
            f"dataset {dataset}: one folder of it is needed, found {', '.join(found) or 'none'} "
            f"({where}){known}{suggest(str(dataset), there)}"
        )
    return found[0]


@dataclass(frozen=True)
class Roots:
    """The two folders that hold datasets, `nnUNet_raw` and `nnUNet_preprocessed`."""

    raw: Path
    preprocessed: Path

    @classmethod
    def from_environment(cls) -> Roots:
        """Raises ValueError where a variable is not set."""
        return cls(root_folder(RAW), root_folder(PREPROCESSED))

    def dataset(self, dataset: int | str) -> str:
        """See `dataset_name`."""
        return dataset_name(dataset, self.raw, self.preprocessed)


def plans_file(dataset: int | str, plans: str, root: Path | None = None) -> Path:
    """The file of a dataset's plans.

    Args:
        dataset: number or name.
        plans: name of the plans.
        root: `nnUNet_preprocessed`; None: what the environment names.

    Raises:
        ValueError: the variable is not set, or the dataset or its plans are not there.
    """
    folder = root_folder(PREPROCESSED) if root is None else root
    path = folder / dataset_name(dataset, folder) / f"{plans}.json"
    if not path.is_file():
        near = suggest(plans, [file.stem for file in path.parent.glob("*.json")])
        raise ValueError(
            f"{path} does not exist{near}; run first: nnUNetv2_plan_experiment -d {dataset} "
            "(other plans: -p)"
        )
    return path


def check_preprocessed(folder: Path, plans: str, configuration: str) -> None:
    """Raises ValueError where the folder of the preprocessed cases is missing or empty."""
    if not folder.is_dir() or next(folder.iterdir(), None) is None:
        state = "is empty" if folder.is_dir() else "does not exist"
        dataset = folder.parent.name
        raise ValueError(
            f"{dataset} is not preprocessed for {configuration} of {plans}: {folder} {state}; run "
            f"first: nnUNetv2_preprocess -d {dataset_number(dataset)} -plans_name {plans} "
            f"-c {configuration}"
        )


def find_data_identifier(plans: Mapping[str, Any], configuration: str | None) -> str | None:
    """Name of the folder of a configuration's preprocessed cases; it may be inherited."""
    configurations = plans.get("configurations", {})
    name = configuration
    for _ in configurations:  # an inheritance that goes round in a circle ends too
        entry = configurations.get(name, {})
        if "data_identifier" in entry:
            return str(entry["data_identifier"])
        name = entry.get("inherits_from")
    return None


def own_folder(preprocessed: Path) -> Path:
    """nnSSL's folder of a configuration, by nnU-Net's folder of its preprocessed cases."""
    return preprocessed.parent / OWN / preprocessed.name


def cache_places(path: Path) -> tuple[Path, ...]:
    """Where to look for a cache below `nnUNet_preprocessed`; the first is where to write it.

    That is `path`, unless it cannot be written (a folder that many users share): then the same
    place below `nnUNet_results/nnssl_caches`.
    """
    there = next(each for each in (path, *path.parents) if each.exists())
    preprocessed, results = find_root(PREPROCESSED), find_root(RESULTS)
    if os.access(there, os.W_OK) or preprocessed is None or results is None:
        return (path,)
    if preprocessed not in path.parents:
        return (path,)
    return results / CACHES / path.relative_to(preprocessed), path


def find_raw_images(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Case -> files of its channels, of a folder such as `imagesTr` (which may be missing)."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob(f"*{ending}")):
        stem = file.name.removesuffix(ending)
        if _CHANNEL.search(stem):
            found.setdefault(stem[: -len("_0000")], []).append(file)
    return found


def fold_folder(
    dataset: Path, trainer: str, plans: str, configuration: str, fold: int | str
) -> Path:
    """Folder of one fold of a run under `nnUNet_results/DatasetXXX_NAME`."""
    return dataset / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"


def find_fold_folders(
    dataset: Path,
    trainer: str = "*",
    plans: str = "*",
    configuration: str = "*",
    fold: int | str = "*",
) -> list[Path]:
    """As `fold_folder`, every folder that is there; a star stands for any text."""
    pattern = fold_folder(Path(), trainer, plans, configuration, fold)
    found = sorted(dataset.glob(str(pattern)))
    return [each for each in found if each.is_dir() and each.parent.name.count("__") == 2]


def parse_fold_folder(folder: Path) -> tuple[str, str, str, str]:
    """Trainer, plans, configuration and fold of the folder of a fold."""
    trainer, plans, configuration = folder.parent.name.split("__")
    return trainer, plans, configuration, folder.name.removeprefix("fold_")


def find_training_logs(fold: Path) -> list[Path]:
    """The training logs of a fold, the newest last."""
    return sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
