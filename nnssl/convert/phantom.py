"""A synthetic cardiac dataset in ACDC's native layout, for trying nnSSL out without any data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from nnssl.common.parallel import for_each
from nnssl.convert.phantom_anatomy import GROUPS, Anatomy, phase_of, shape_of
from nnssl.convert.phantom_image import Grid, acquire, heart, surroundings
from nnssl.convert.volumes import FILE_ENDING, be_quiet, write_image

SIZES = {"small": (128, 112), "full": (256, 216)}  # in-plane voxels (Y, X)
README = """SYNTHETIC DATA, drawn by nnSSL's phantom ({patients} patients, seed {seed}).
They show no human being. They imitate the file layout and the look of short-axis cine MR as in the
ACDC challenge, so that software can be tried out. Results on them say nothing about real data.
"""


@dataclass(frozen=True)
class PhantomFrame:
    """Image and labels of one frame, (Z, Y, X); spacing in mm in the order x, y, z."""

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]


def draw_patient(
    seed: int, number: int, size: str = "small"
) -> tuple[dict[str, PhantomFrame], dict[str, str]]:
    """Draw one synthetic patient.

    Args:
        seed: Seed of the dataset.
        number: Number of the patient; each has random numbers of its own.
        size: One of ``SIZES``.

    Returns:
        ``{"ED": frame, "ES": frame}`` and the entries of ``Info.cfg``.
    """
    rng = np.random.default_rng([seed, number])
    group = list(GROUPS)[number % len(GROUPS)]
    anatomy = Anatomy.draw(rng, group)
    grid, distance = _grid(rng, anatomy, SIZES[size])
    shifts = rng.normal(0, 0.8, (2, len(grid.z), 1, 1)).astype(np.float32)  # breath-holds differ
    looks, coil = (int(n) for n in rng.integers(2**31, size=2))
    frames = {}
    for systole, name in enumerate(("ED", "ES")):
        image = surroundings(np.random.default_rng(looks), grid)
        phase = phase_of(anatomy, bool(systole))
        shape = shape_of(anatomy, phase, grid.z, grid.y + shifts[0], grid.x + shifts[1])
        heart(np.random.default_rng(looks + 1), image, grid, anatomy, shape)
        noisy = acquire(rng, np.random.default_rng(coil), image, grid)
        frames[name] = PhantomFrame(noisy, shape.labels, (grid.spacing, grid.spacing, distance))
    return frames, _info(rng, group)


def write_phantom(
    folder: Path, patients: int = 30, seed: int = 0, size: str = "small", workers: int = 1
) -> None:
    """Write ``folder/training/patientXXX`` and a README that calls the data synthetic.

    Args:
        folder: New or empty folder.
        patients: Number of patients.
        seed: Same seed, same data.
        size: ``small`` shows the heart, ``full`` the whole chest.
        workers: Number of processes.

    Raises:
        ValueError: A parameter is out of range, or the folder holds something already.
    """
    if not 1 <= patients <= 999:
        raise ValueError(f"patients is {patients}; allowed: 1 to 999")
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; allowed: {', '.join(SIZES)}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(README.format(patients=patients, seed=seed))
    work = partial(_write_patient, folder=folder / "training", seed=seed, size=size)
    for_each(work, range(1, patients + 1), workers, "draw")


def _grid(rng: np.random.Generator, anatomy: Anatomy, size: tuple[int, int]) -> tuple[Grid, float]:
    spacing = round(float(rng.uniform(1.2, 1.9)), 4)
    distance = float(rng.choice([5.0, 7.0, 8.0, 10.0], p=[0.1, 0.15, 0.25, 0.5]))
    slices = int(np.clip(np.ceil(anatomy.length / distance), 6, 12))
    z = rng.uniform(0, 0.7) * distance + distance * np.arange(slices)
    centre = rng.normal(0, 6, 2)
    y, x = ((np.arange(n) - n / 2) * spacing + at for n, at in zip(size, centre, strict=True))
    z, y, x = (axis.astype(np.float32) for axis in (z, y, x))
    return Grid(z[:, None, None], y[None, :, None], x[None, None, :], spacing), distance


def _info(rng: np.random.Generator, group: str) -> dict[str, str]:
    first = 4 if rng.random() < 0.05 else 1
    last = first + int(rng.integers(7, 13))
    height, weight = rng.normal(170, 9), rng.normal(76, 13)
    entries = {"ED": first, "ES": last, "Group": group, "Height": f"{height:.1f}", "NbFrame": 30}
    return {key: str(value) for key, value in entries.items()} | {"Weight": f"{weight:.1f}"}


def _write_patient(number: int, folder: Path, seed: int, size: str) -> None:
    be_quiet()
    frames, info = draw_patient(seed, number, size)
    name = f"patient{number:03d}"
    (folder / name).mkdir(parents=True)
    lines = [f"{key}: {value}" for key, value in info.items()]
    (folder / name / "Info.cfg").write_text("\n".join(lines) + "\n")
    for phase, frame in frames.items():
        stem = f"{name}_frame{int(info[phase]):02d}"
        for array, ending in ((frame.image, ""), (frame.labels, "_gt")):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(frame.spacing)
            write_image(volume, folder / name / f"{stem}{ending}{FILE_ENDING}")
