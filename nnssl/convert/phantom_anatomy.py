"""Shape of a synthetic short-axis heart: who the patient is, and where the tissues lie.

Lengths are in mm; ``z`` runs from base (0) to apex, ``x`` to the right and ``y`` down in the slice.
All fields have the shape (Z, Y, X).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]

RV, MYOCARDIUM, CAVITY = 1, 2, 3  # ACDC's label values

# group -> (cavity radius, wall, fractional area change, RV width), means in mm and as a fraction
GROUPS: dict[str, tuple[float, float, float, float]] = {
    "NOR": (24.0, 8.5, 0.55, 30.0),
    "DCM": (32.0, 7.5, 0.22, 30.0),
    "HCM": (21.0, 14.0, 0.68, 27.0),
    "MINF": (28.0, 8.0, 0.32, 28.0),
    "RV": (22.0, 8.5, 0.52, 42.0),
}


@dataclass(frozen=True)
class Anatomy:
    """One patient's heart at end-diastole."""

    group: str
    length: float
    cavity: float
    wall: float
    area_change: float
    rv_width: float
    rv_angle: float  # half the angle (rad) under which the right ventricle embraces the left
    septum: float  # direction (rad) of the septum, seen from the left ventricle's centre
    rv_skew: float  # where between the insertions the right ventricle is widest, -1 to 1
    papillary: NDArray[np.float64]  # (2, 3): angle (rad), relative distance, relative radius
    drift: tuple[float, float]  # how the long axis leaves the slice normal, mm per mm
    bumps: NDArray[np.float64]  # (2, K, 2): amplitude and phase of waves 2... of both walls
    scar: float  # direction (rad) of a thin wall, for group MINF

    @classmethod
    def draw(cls, rng: np.random.Generator, group: str) -> Anatomy:
        """Draw a patient of one of the five groups."""
        cavity, wall, change, width = GROUPS[group]
        waves = np.stack([rng.normal(0, [0.035, 0.02, 0.012]), rng.uniform(0, 2 * np.pi, 3)], -1)
        inner = waves * [1.3, 1] + np.stack([rng.normal(0, 0.01, 3), rng.normal(0, 0.3, 3)], -1)
        papillary = rng.normal([[-0.95, 0.74, 0.17], [0.95, 0.74, 0.17]], [0.15, 0.05, 0.03])
        return cls(
            group=group,
            length=float(np.clip(rng.normal(86, 8), 66, 105)),
            cavity=float(np.clip(rng.normal(cavity, 2), 16, 38)),
            wall=float(np.clip(rng.normal(wall, 1), 5.5, 18)),
            area_change=float(np.clip(rng.normal(change, 0.06), 0.1, 0.8)),
            rv_width=float(np.clip(rng.normal(width, 4), 20, 55)),
            rv_angle=float(rng.uniform(1.0, 1.3)),
            rv_skew=float(rng.normal(-0.25, 0.3)),
            papillary=papillary,
            septum=float(np.pi + rng.normal(0.05, 0.25)),
            drift=(float(rng.normal(0.12, 0.1)), float(rng.normal(0.05, 0.1))),
            bumps=np.stack([inner, waves]),
            scar=float(rng.uniform(0, 2 * np.pi)),
        )


@dataclass(frozen=True)
class Phase:
    """The heart at one moment of the cycle."""

    base: float  # z of the valve plane
    length: float
    cavity: float
    outer: float
    rv_width: float


def phase_of(anatomy: Anatomy, systole: bool) -> Phase:
    """End-diastole or end-systole; the muscle keeps its area, so the wall thickens."""
    outer = anatomy.cavity + anatomy.wall
    if not systole:
        return Phase(0.0, anatomy.length, anatomy.cavity, outer, anatomy.rv_width)
    descent = 14 * anatomy.area_change
    cavity = anatomy.cavity * np.sqrt(1 - anatomy.area_change)
    muscle = outer**2 - anatomy.cavity**2
    outer = float(np.sqrt(cavity**2 + muscle * 1.03))
    rv_width = anatomy.rv_width * (1 - 0.4 * min(anatomy.area_change + 0.15, 0.6))
    return Phase(descent, anatomy.length - descent - 1, float(cavity), outer, rv_width)


@dataclass(frozen=True)
class Shape:
    """Signed distances (mm, positive inside) of one phase, and polar coordinates of the heart."""

    radius: Field
    angle: Field
    depth: Field  # 0 at the valve plane, 1 at the apex (Z, 1, 1)
    cavity: Field
    outer: Field
    rv: Field

    @property
    def labels(self) -> NDArray[np.uint8]:
        """ACDC's labels; nothing above the valve plane or below the apex."""
        labels = np.zeros(self.radius.shape, np.uint8)
        labels[self.rv > 0] = RV
        labels[self.outer > 0] = MYOCARDIUM
        labels[(self.cavity > 0) & (self.outer > 0)] = CAVITY
        return np.where((self.depth >= 0) & (self.depth <= 1), labels, 0).astype(np.uint8)


def shape_of(anatomy: Anatomy, phase: Phase, z: Field, y: Field, x: Field) -> Shape:
    """Where the ventricles lie.

    Args:
        anatomy: The patient.
        phase: The moment.
        z: Position along the long axis (Z, 1, 1).
        y: Position in the slice (Z, Y, 1), 0 at the heart.
        x: Position in the slice (Z, 1, X), 0 at the heart.
    """
    x = x - np.float32(anatomy.drift[0]) * (z - anatomy.length / 2)
    y = y - np.float32(anatomy.drift[1]) * (z - anatomy.length / 2)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    depth = (z - phase.base) / phase.length
    apex_wall = 0.6 * (phase.outer - phase.cavity) / phase.length
    outer = phase.outer * _taper(depth) * _waves(angle, anatomy.bumps[1])
    cavity = phase.cavity * _taper(depth / (1 - apex_wall)) * _waves(angle, anatomy.bumps[0])
    cavity = np.minimum(cavity + _scar(anatomy, phase, angle, depth), outer - 2.5)
    width = phase.rv_width * _taper(np.maximum(depth, 0.05) / 0.88, 1.3)
    reach = _crescent(angle - np.float32(anatomy.septum), anatomy.rv_angle, anatomy.rv_skew)
    width = width * reach * (2 * _waves(angle, anatomy.bumps[0]) - 1)
    rv = np.minimum(np.minimum(outer + width - radius, radius - outer), 40 * (reach - 0.1))
    return Shape(radius, angle, depth, cavity - radius, outer - radius, rv)


def _taper(depth: Field, power: float = 2.4) -> Field:
    """Radius from base (1) to apex (0), as of a prolate spheroid; constant above the base."""
    return np.sqrt(np.clip(1 - np.clip(depth, 0, None) ** power, 0, 1), dtype=np.float32)


def _waves(angle: Field, bumps: NDArray[np.float64]) -> Field:
    out = np.ones_like(angle)
    for order, (amplitude, shift) in enumerate(bumps, start=2):
        out += np.float32(amplitude) * np.cos(order * angle + np.float32(shift))
    return out


def _scar(anatomy: Anatomy, phase: Phase, angle: Field, depth: Field) -> Field:
    thinning = 0.55 if anatomy.group == "MINF" else 0.0
    sector = np.clip(np.cos(angle - np.float32(anatomy.scar)), 0, 1) ** 3
    return np.float32(thinning * (phase.outer - phase.cavity)) * sector * np.clip(depth + 0.2, 0, 1)


def _crescent(angle: Field, half: float, skew: float) -> Field:
    """1 near the middle of the septum (moved by ``skew``), 0 at ``half`` on both sides."""
    turned = np.clip(((angle + np.pi) % (2 * np.pi) - np.pi) / half, -1, 1)
    turned = turned + np.float32(0.45 * np.tanh(skew)) * (1 - turned**2)
    return np.clip(np.cos(turned * np.pi / 2), 0, 1).astype(np.float32) ** np.float32(0.75)
