"""A miniature of ACDC's native layout: tiny volumes, real names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

SHAPE = (3, 6, 5)  # z, y, x
SPACING = (1.5, 1.25, 8.0)
ORIGIN = (-3.0, 4.5, 10.0)
DIRECTION = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)


class Miniature:
    """Writes patients in the native layout and lets a test damage them."""

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
            self.volume(f"{stem}{ending}", rng.integers(0, 900, SHAPE).astype(np.int16))
            if labels:
                self.volume(f"{stem}_gt{ending}", rng.integers(0, 4, SHAPE).astype(np.uint8))
        (home / f"{name}_4d.nii.gz").write_bytes(b"never opened")
        return home

    @staticmethod
    def volume(path: str | Path, array: np.ndarray, spacing=SPACING, origin=ORIGIN) -> None:
        """A volume with an unusual geometry."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(DIRECTION)
        sitk.WriteImage(image, str(path))


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
