"""A miniature of ACDC's native layout: tiny volumes, real names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.spec import DatasetSpec, find_specs, read_spec


class Miniature:
    """Writes patients in the native layout and lets a test damage them."""

    SHAPE = (3, 6, 5)  # z, y, x
    SPACING = (1.5, 1.25, 8.0)
    ORIGIN = (-3.0, 4.5, 10.0)
    DIRECTION = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)

    def __init__(self, root: Path) -> None:
        self.root = root

    def patient(self, folder: str, number: int, ed: int = 1, es: int = 12, **options) -> Path:
        """One patient's folder below ``root / folder``."""
        name = f"patient{number:03d}"
        home = self.root / folder / name
        home.mkdir(parents=True, exist_ok=True)
        (home / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: NOR\nNbFrame: 30\n")
        ending, labels = options.get("ending", ".nii.gz"), options.get("labels", True)
        for frame in (ed, es):
            rng = np.random.default_rng([number, frame])
            stem = home / f"{name}_frame{frame:02d}"
            self.volume(f"{stem}{ending}", rng.integers(0, 900, Miniature.SHAPE).astype(np.int16))
            if labels:
                self.volume(
                    f"{stem}_gt{ending}", rng.integers(0, 4, Miniature.SHAPE).astype(np.uint8)
                )
        (home / f"{name}_4d.nii.gz").write_bytes(b"never opened")
        return home

    @staticmethod
    def volume(path: str | Path, array: np.ndarray, spacing=SPACING, origin=ORIGIN) -> None:
        """A volume with an unusual geometry."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(Miniature.DIRECTION)
        sitk.WriteImage(image, str(path))


@pytest.fixture
def two_patients(tmp_path: Path) -> Callable[..., Miniature]:
    """``two_patients(folder, **options)``: a source of two training patients."""

    def make(folder: str = "training", **options) -> Miniature:
        source = Miniature(tmp_path / "data")
        for number in (1, 2):
            source.patient(folder, number, **options)
        return source

    return make


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    """Six training and two test patients, 2017 layout; patient 4 has its ED in frame 4."""
    source = Miniature(tmp_path / "ACDC")
    for number in range(1, 7):
        source.patient("training", number, ed=4 if number == 4 else 1)
    for number in (101, 102):
        source.patient("testing", number)
    return source


@pytest.fixture
def spec() -> DatasetSpec:
    """The installed ACDC spec."""
    return read_spec(find_specs()["ACDC"])


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """``tree(folder)``: all files below a folder with their content."""

    def read(folder: Path) -> dict[str, bytes]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
