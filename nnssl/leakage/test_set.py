"""The test images of a dataset (imagesTs): whose they are, and thumbnails to find copies by."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nnssl.common.files import read_json
from nnssl.convert.volumes import be_quiet, last_line
from nnssl.data.thumbnails import cached, kept, of_file
from nnssl.data.unlabelled.job import Plan
from nnssl.nnunet.cases import CASES_FILE
from nnssl.nnunet.images import CaseError

TEST, RAW = "imagesTs", "nnUNet_raw"


@dataclass(frozen=True)
class TestSet:
    """Test images, which nnU-Net keeps raw only.

    Attributes:
        patients: identifier -> patient; a case without record is a patient of its own.
        files: identifier -> file of the first channel, where it is at hand.
    """

    __test__ = False  # no class of tests

    patients: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def read_test_set(dataset: Path, ending: str) -> TestSet:
    """The test set by the dataset's records and by what lies in `nnUNet_raw`.

    Args:
        dataset: `nnUNet_preprocessed/DatasetXXX_NAME`.
        ending: of the raw files.
    """
    record = dataset / CASES_FILE
    known: Any = read_json(record).get("cases", {}) if record.is_file() else {}
    patients = {case: e["patient"] for case, e in known.items() if e.get("part") == "Ts"}
    root = os.environ.get(RAW)
    folder = Path(root) / dataset.name / TEST if root else Path()
    files = {}
    for file in sorted(folder.glob(f"*_0000{ending}")) if root else ():
        identifier = file.name[: -len(f"_0000{ending}")]
        patients.setdefault(identifier, known.get(identifier, {}).get("patient", identifier))
        files[identifier] = file
    return TestSet(patients, files)


def thumbnails_of_test_set(test: TestSet, own: Path, plan: Plan) -> np.ndarray | None:
    """Thumbnails (N, cells) of all test images, made once from the raw images.

    They are preprocessed like all others before, so that cropping and order of axes agree.

    Args:
        test: the test set.
        own: nnssl's folder of the configuration; thumbnails are kept there.
        plan: how to preprocess.

    Returns:
        None where some image is neither at hand nor known from before.
    """
    cache = own / f"thumbnails_{TEST}_{plan.voxels[:12]}.npz"
    if set(test.files) < set(test.patients):
        return cached(cache, sorted(test.patients))
    return kept(test.files, cache, lambda file: _thumbnail(file, plan))


def _thumbnail(file: Path, plan: Plan) -> np.ndarray:
    be_quiet()
    stem, ending = re.split(r"_0000(?=\.)", file.name, maxsplit=1)
    channels = sorted(file.parent.glob(f"{stem}_[0-9][0-9][0-9][0-9]{ending}"))
    try:
        with TemporaryDirectory() as scratch:
            made, _ = plan.preprocess(channels, Path(scratch))
            return of_file(made)
    except (OSError, RuntimeError, ValueError) as error:
        raise CaseError(f"test image {file}: cannot be read ({last_line(error)})") from error
