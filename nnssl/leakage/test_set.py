"""The test images of a dataset (imagesTs): whose they are, and thumbnails to find copies by."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nnssl.convert.volumes import be_quiet, last_line
from nnssl.data.thumbnails import load_cached, load_thumbnails, read_thumbnail
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.nnunet.cases import read_all_cases
from nnssl.nnunet.images import CaseError
from nnssl.nnunet.paths import RAW, TEST_IMAGES, find_raw_images, find_root


@dataclass(frozen=True)
class TestSet:
    """Test images, which nnU-Net keeps raw only."""

    __test__ = False  # no class of tests

    patients: dict[str, str] = field(default_factory=dict)  # a case without record is its own
    files: dict[str, list[Path]] = field(default_factory=dict)  # of the channels, where at hand


def read_test_set(dataset: Path, ending: str) -> TestSet:
    """The test set by the dataset's records and by what lies in `nnUNet_raw`."""
    test, known = read_all_cases(dataset, "Ts"), read_all_cases(dataset)
    root = find_root(RAW)
    files = find_raw_images(root / dataset.name / TEST_IMAGES, ending) if root else {}
    patients = {case: known[case].patient if case in known else case for case in (*test, *files)}
    return TestSet(patients, files)


def load_test_thumbnails(test: TestSet, own: Path, plan: PreprocessingPlan) -> np.ndarray | None:
    """Thumbnails (N, cells) of all test images, sorted by name, made once from the raw images.

    They are preprocessed like all others before, so that cropping and order of axes agree.

    Returns:
        None where some image is neither at hand nor known from before.
    """
    cache = own / f"thumbnails_{TEST_IMAGES}_{plan.voxels[:12]}.npz"
    if set(test.files) < set(test.patients):
        return load_cached(cache, sorted(test.patients))
    channels = {files[0]: files for files in test.files.values()}
    first = {case: files[0] for case, files in sorted(test.files.items())}
    return load_thumbnails(first, cache, lambda file: _make_thumbnail(channels[file], plan))


def _make_thumbnail(channels: list[Path], plan: PreprocessingPlan) -> np.ndarray:
    be_quiet()
    try:
        with TemporaryDirectory() as scratch:
            made, _ = plan.preprocess(channels, Path(scratch))
            return read_thumbnail(made)
    except (OSError, RuntimeError, ValueError) as error:
        raise CaseError(f"test image {channels[0]}: cannot be read ({last_line(error)})") from error
