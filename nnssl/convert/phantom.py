"""A synthetic short-axis cine MR of the heart in ACDC's layout, to try nnSSL without any data.

Lengths are in mm; z runs from base to apex, y down and x to the right in the slice. Fields have the
shape (Z, Y, X); distances to a border are positive inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from nnssl.common.parallel import for_each
from nnssl.convert.volumes import FILE_ENDING, be_quiet, write_image

Field = NDArray[np.floating[Any]]
Rng = np.random.Generator

SIZES = {"small": (128, 112), "full": (256, 216)}  # in-plane voxels (Y, X)
README = """SYNTHETIC DATA, drawn by nnSSL's phantom ({patients} patients, seed {seed}).
They show no human being. They imitate the file layout and the look of short-axis cine MR as in the
ACDC challenge, so that software can be tried out. Results on them say nothing about real data.
"""
# group -> means of cavity radius, wall, fractional area change, width of the right ventricle
GROUPS = {
    "NOR": (24.0, 8.5, 0.55, 30.0),
    "DCM": (32.0, 7.5, 0.22, 30.0),
    "HCM": (21.0, 14.0, 0.68, 27.0),
    "MINF": (28.0, 8.0, 0.32, 28.0),
    "RV": (22.0, 8.5, 0.52, 42.0),
}
RIGHT, MUSCLE_WALL, LEFT = 1, 2, 3  # ACDC's label values
BLOOD, MUSCLE, FAT, LUNG, LIVER = 0.74, 0.22, 0.90, 0.06, 0.30  # relative signal


@dataclass(frozen=True)
class PhantomFrame:
    """Image and labels of one frame, (Z, Y, X); spacing in mm in the order x, y, z."""

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]


def write_phantom(
    folder: Path, patients: int = 30, seed: int = 0, size: str = "small", workers: int = 1
) -> None:
    """Write ``folder/training/patientXXX`` and a README that calls the data synthetic.

    The same seed gives the same data; the size ``small`` shows the heart, ``full`` the whole chest.

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


def _write_patient(number: int, folder: Path, seed: int, size: str) -> None:
    be_quiet()
    frames, info = draw_patient(seed, number, size)
    name = f"patient{number:03d}"
    (folder / name).mkdir(parents=True)
    lines = [f"{key}: {value}\n" for key, value in info.items()]
    (folder / name / "Info.cfg").write_text("".join(lines))
    for phase, frame in frames.items():
        for array, ending in ((frame.image, ""), (frame.labels, "_gt")):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(frame.spacing)
            file = f"{name}_frame{int(info[phase]):02d}{ending}{FILE_ENDING}"
            write_image(volume, folder / name / file)


def draw_patient(
    seed: int, number: int, size: str = "small"
) -> tuple[dict[str, PhantomFrame], dict[str, str]]:
    """Draw one synthetic patient of a dataset; each number has random numbers of its own.

    Returns:
        ``{"ED": frame, "ES": frame}`` and the entries of ``Info.cfg``.
    """
    rng = np.random.default_rng([seed, number])
    group = list(GROUPS)[number % len(GROUPS)]
    heart = Heart(rng, group)
    grid, distance = _draw_grid(rng, heart.length, SIZES[size])
    shifts = rng.normal(0, 0.8, (2, len(grid.z), 1, 1)).astype(np.float32)  # breath-holds differ
    look, coil = rng.integers(2**31, size=2)
    frames = {}
    for phase in ("ED", "ES"):  # both show the same textures and the same coil
        image = _draw_chest(np.random.default_rng(look), grid)
        y, x = grid.y + shifts[0], grid.x + shifts[1]
        shape = heart.shape_at(phase == "ES", grid.z, y, x)
        _paint_heart(np.random.default_rng(look + 1), image, grid, heart, shape)
        scanned = _acquire(rng, np.random.default_rng(coil), image, grid)
        frames[phase] = PhantomFrame(scanned, shape.labels, (grid.spacing, grid.spacing, distance))
    first = 4 if rng.random() < 0.05 else 1
    info = {"ED": first, "ES": first + int(rng.integers(7, 13)), "Group": group, "NbFrame": 30}
    info |= {"Height": round(rng.normal(170, 9), 1), "Weight": round(rng.normal(76, 13), 1)}
    return frames, {key: str(value) for key, value in info.items()}


# ---------------------------------------------------------------------------- shape


@dataclass(frozen=True)
class Grid:
    """Positions of a stack of slices, (Z, 1, 1), (1, Y, 1) and (1, 1, X); 0 is the heart."""

    z: Field
    y: Field
    x: Field
    spacing: float

    def draw_noise(self, rng: Rng, length: float) -> Field:
        """Smooth noise of mean 0 and variance 1 per slice that changes slowly along the stack."""
        white = rng.standard_normal((len(self.z), self.y.size, self.x.size), np.float32)
        noise = self.smooth(white, length)
        noise -= noise.mean((1, 2), keepdims=True)
        noise /= noise.std((1, 2), keepdims=True) + 1e-6
        for index in range(1, len(noise)):
            noise[index] = 0.6 * noise[index - 1] + 0.8 * noise[index]
        return noise.astype(np.float32)

    def smooth(self, field: Field, length: float) -> Field:
        """Every slice convolved with a Gaussian of standard deviation ``length`` mm."""
        sigma = (0, length / self.spacing, length / self.spacing)
        spectrum = ndimage.fourier_gaussian(np.fft.rfft2(field), sigma, field.shape[2])
        return np.fft.irfft2(spectrum, field.shape[1:])


def _draw_grid(rng: Rng, length: float, size: tuple[int, int]) -> tuple[Grid, float]:
    spacing = round(float(rng.uniform(1.2, 1.9)), 4)
    distance = float(rng.choice([5.0, 7.0, 8.0, 10.0], p=[0.1, 0.15, 0.25, 0.5]))
    slices = int(np.clip(np.ceil(length / distance), 6, 12))
    z = (rng.uniform(0, 0.7) + np.arange(slices)) * distance
    y, x = ((np.arange(n) - n / 2) * spacing + rng.normal(0, 6) for n in size)
    z, y, x = (axis.astype(np.float32) for axis in (z, y, x))
    return Grid(z[:, None, None], y[None, :, None], x[None, None, :], spacing), distance


@dataclass(frozen=True)
class Shape:
    """Polar coordinates around the left ventricle, and distances to the borders of one phase."""

    radius: Field
    angle: Field
    depth: Field  # 0 at the valve plane, 1 at the apex (Z, 1, 1)
    cavity: Field
    outer: Field
    right: Field

    @property
    def labels(self) -> NDArray[np.uint8]:
        """ACDC's labels; nothing above the valve plane or below the apex."""
        wall, cavity = self.outer > 0, self.cavity > 0
        structures = [wall & cavity, wall, self.right > 0]
        labels = np.select(structures, [LEFT, MUSCLE_WALL, RIGHT], 0)
        return (labels * ((self.depth >= 0) & (self.depth <= 1))).astype(np.uint8)


class Heart:
    """One patient's heart: sizes at end-diastole, and what is irregular about it."""

    def __init__(self, rng: Rng, group: str) -> None:
        """Draw a patient of one of the five groups."""
        cavity, wall, change, width = GROUPS[group]
        self.length = float(np.clip(rng.normal(86, 8), 66, 105))
        self.cavity = np.clip(rng.normal(cavity, 2), 16, 38)
        self.wall = np.clip(rng.normal(wall, 1), 5.5, 18)
        self.change = np.clip(rng.normal(change, 0.06), 0.1, 0.8)  # of the cavity's area
        self.right_width = np.clip(rng.normal(width, 4), 20, 55)
        self.embrace = rng.uniform(1.0, 1.3)  # half the angle of the right ventricle around it
        self.skew = rng.normal(-0.25, 0.3)  # where the right ventricle is widest
        self.septum = np.pi + rng.normal(0.05, 0.25)  # direction
        self.drift = rng.normal([0.12, 0.05], 0.1)  # of the long axis in x and y, mm per mm
        self.thinning = 0.55 if group == "MINF" else 0.0
        self.scar = rng.uniform(0, 2 * np.pi)  # direction of the thin wall
        waves = np.stack([rng.normal(0, [0.035, 0.02, 0.012]), rng.uniform(0, 2 * np.pi, 3)], 1)
        self.outer_waves = waves
        self.cavity_waves = waves * [1.3, 1] + rng.normal(0, [0.01, 0.3], (3, 2))
        # angle from the septum's opposite, relative distance, relative radius
        self.papillary = rng.normal([[-0.95, 0.74, 0.17], [0.95, 0.74, 0.17]], [0.15, 0.05, 0.03])

    def shape_at(self, systole: bool, z: Field, y: Field, x: Field) -> Shape:
        """Where the ventricles lie; the muscle keeps its area, so the wall thickens in systole."""
        cavity, outer, base, width = self.cavity, self.cavity + self.wall, 0.0, self.right_width
        if systole:
            muscle, base = outer**2 - cavity**2, 14 * self.change
            cavity = cavity * np.sqrt(1 - self.change)
            outer = np.sqrt(cavity**2 + muscle * 1.03)
            width = width * (1 - 0.4 * min(self.change + 0.15, 0.6))
        length = self.length - base - (1 if systole else 0)
        along = z - self.length / 2
        x, y = (at - np.float32(d) * along for at, d in zip((x, y), self.drift, strict=True))
        radius, angle, depth = np.hypot(x, y), np.arctan2(y, x), (z - base) / length
        bumps = _wave(angle, self.cavity_waves)
        outside = outer * _taper(depth) * _wave(angle, self.outer_waves)
        inside = cavity * _taper(depth / (1 - 0.6 * (outer - cavity) / length)) * bumps
        sector = np.clip(np.cos(angle - self.scar), 0, 1) ** 3 * np.clip(depth + 0.2, 0, 1)
        inside = np.minimum(inside + self.thinning * (outer - cavity) * sector, outside - 2.5)
        turned = np.clip(_wrap(angle - self.septum) / self.embrace, -1, 1)
        turned = turned + 0.45 * np.tanh(self.skew) * (1 - turned**2)
        reach = np.clip(np.cos(turned * np.pi / 2), 0, 1) ** 0.75
        wide = width * _taper(np.maximum(depth, 0.05) / 0.88, 1.3) * reach * (2 * bumps - 1)
        right = np.minimum(np.minimum(outside + wide - radius, radius - outside), 40 * reach - 4)
        return Shape(radius, angle, depth, inside - radius, outside - radius, right)


def _taper(depth: Field, power: float = 2.4) -> Field:
    """Radius from base (1) to apex (0), as of a prolate spheroid; constant above the base."""
    return np.sqrt(np.clip(1 - np.clip(depth, 0, None) ** power, 0, 1))


def _wave(angle: Field, waves: Field) -> Field:
    """An almost round outline: 1 and waves of order 2, 3, 4 with an amplitude and a phase each."""
    return 1 + sum(a * np.cos(order * angle + b) for order, (a, b) in enumerate(waves, 2))


def _wrap(angle: Field) -> Field:
    return (angle + np.pi) % (2 * np.pi) - np.pi


# ---------------------------------------------------------------------------- look


def _soften(distance: Field, width: float = 1.5) -> Field:
    """Share of a tissue in a voxel, from the distance to its border."""
    return np.clip(distance / width + 0.5, 0, 1)


def _paint(image: Field, share: Field, value: Field | float) -> None:
    """Put a tissue over what is there."""
    image += share * (value - image)


def _draw_chest(rng: Rng, grid: Grid) -> Field:
    """Chest wall, lungs with vessels, aorta, liver and bowel: everything but the heart."""
    coarse, medium, fine = (grid.draw_noise(rng, length) for length in (22, 6, 2.5))
    image = np.zeros_like(coarse)
    wide, tall = rng.uniform(100, 125), rng.uniform(155, 190)
    across = (grid.x - rng.uniform(8, 24) + rng.normal(0, 0.15) * grid.y) / wide
    radius = (np.abs(across) ** 2.6 + np.abs((grid.y - 12) / tall) ** 2.6) ** (1 / 2.6)
    body = (1 - radius) * wide + 5 * coarse
    _paint(image, _soften(body, 3), FAT + 0.06 * medium)
    inside = body - rng.uniform(8, 18) - 4 * np.clip(coarse, -1, 2) + 0.6 * medium
    _paint(image, _soften(inside), MUSCLE - 0.03 + 0.07 * medium)
    vessels = np.clip(fine - 2.0, 0, 1) * np.exp(-np.hypot(grid.x, grid.y + 25) / 55) * 1.6
    lungs = inside - rng.uniform(8, 14) - 1.5 * coarse
    _paint(image, _soften(lungs), LUNG + vessels + 0.012 * medium)
    right, down = rng.normal([62, 40], 8)
    aorta = rng.uniform(10, 13) - np.hypot(grid.x - right, grid.y - down)
    _paint(image, _soften(aorta + 2), MUSCLE)
    _paint(image, _soften(aorta), BLOOD)
    dome = rng.uniform(25, 42) - 0.25 * (grid.z - 40) + 0.0035 * (grid.x + 10) ** 2
    below = np.minimum(grid.y - dome - 3 * coarse, inside - 6)
    liver = LIVER + 0.02 * medium + 0.35 * np.clip(fine - 1.9, 0, 1)
    bowel = np.clip(0.32 + 0.2 * medium + 0.08 * fine, 0.03, 0.9)
    border = rng.uniform(-5, 35) + 10 * coarse + 0.3 * (grid.z - 40)
    _paint(image, _soften(below), np.where(grid.x < border, liver, bowel))
    _paint(image, _soften(2.0 - np.abs(below - 1)) * _soften(medium, 1), FAT * 0.8)
    return image


def _paint_heart(rng: Rng, image: Field, grid: Grid, heart: Heart, s: Shape) -> None:
    """Fat, right ventricle with trabeculae, wall, left ventricle with papillary muscles."""
    medium, fine = (grid.draw_noise(rng, length) for length in (7, 2.2))
    reached = _soften(1.04 - s.depth, 0.12)
    sac = np.maximum(s.outer, s.right + 4)
    septal = 0.5 + 0.5 * np.cos(s.angle - heart.septum)
    fat = sac + 8 * septal * np.clip(0.4 + 0.5 * medium, -0.2, 1.2) - 1.5
    _paint(image, _soften(fat + 1.5) * reached, MUSCLE * 0.6)
    _paint(image, _soften(fat) * reached, FAT * (0.8 + 0.08 * fine))
    _paint(image, _soften(s.right + 1.8) * reached, MUSCLE)
    rough = 0.8 * _soften(fine - 0.9, 1) * _soften(7 - s.right, 6) * np.clip(s.depth + 0.4, 0, 1)
    blood = BLOOD * (0.93 + 0.05 * medium + 0.035 * fine)
    _paint(image, _soften(s.right) * reached, blood + rough * (MUSCLE - blood))
    _paint(image, _soften(s.outer) * reached, MUSCLE * (1 + 0.06 * medium + 0.05 * fine))
    rough = _soften(fine - 0.5, 1) * _soften(6 - s.cavity, 6)
    rough *= np.clip(0.1 + s.depth * 1.6, 0, 0.95)
    blood = BLOOD * (1.07 + 0.05 * medium + 0.05 * fine)
    _paint(image, _soften(s.cavity) * reached, blood + rough * (MUSCLE - blood))
    border, present = s.cavity + s.radius, _soften(0.32 - np.abs(s.depth - 0.5), 0.1)
    for angle, place, size in heart.papillary:
        away = np.abs(_wrap(s.angle - heart.septum - np.pi - angle))
        distance = size * border - np.hypot(away * s.radius, s.radius - place * border)
        _paint(image, _soften(distance) * present * _soften(s.cavity), MUSCLE * 1.1)


def _acquire(rng: Rng, coil: Rng, image: Field, grid: Grid) -> NDArray[np.int16]:
    """What a scanner makes of it: bias field, limited resolution, Rician noise, its own scale.

    Reference of the noise: Gudbjartsson and Patz, 1995, doi:10.1002/mrm.1910340618.
    """
    direction = coil.uniform(np.pi, np.pi * 1.4)
    towards = np.cos(direction) * grid.x + np.sin(direction) * grid.y
    bias = np.exp(0.0028 * towards + 0.12 * grid.draw_noise(coil, 70)[:1])
    blurred = grid.smooth(image * bias, 0.42 * grid.spacing)
    real, imaginary = rng.normal(0, coil.uniform(0.012, 0.03), (2, *image.shape))
    magnitude = np.hypot(blurred + real, imaginary) * coil.uniform(180, 900)
    return np.clip(magnitude, 0, 32767).astype(np.int16)
