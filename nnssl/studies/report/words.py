"""Words of a report for readers who did not run the study: labels, structures, intervals."""

from __future__ import annotations

from math import isfinite

LEAST_FOR_INTERVAL = 3  # repetitions of which an interval is shown
WIDEST = 1.0  # Dice lies between 0 and 1: a wider interval says nothing
STRUCTURES = {  # abbreviations of well-known data sets
    "RV": "right ventricle",
    "LV": "left ventricle",
    "MLV": "myocardium of the left ventricle",
    "MYO": "myocardium",
    "LVC": "cavity of the left ventricle",
    "RVC": "cavity of the right ventricle",
    "LA": "left atrium",
    "RA": "right atrium",
    "ET": "enhancing tumour",
    "ED": "oedema",
    "NCR": "necrotic core",
    "TC": "tumour core",
    "WT": "whole tumour",
}


def name_structure(name: str) -> str:
    """`right ventricle (RV)`; a name that is no known abbreviation stays as it is."""
    full = STRUCTURES.get(name.upper())
    return name if full is None else f"{full} ({name})"


def name_budget(budget: float, unit: str) -> str:
    """`1 labelled patient`, `2 labelled patients`; a percentage keeps its unit."""
    if unit == "percentage":
        return f"{budget:g} % of the labels"
    return f"{budget:g} labelled {unit.removesuffix('s') if budget == 1 else unit}"


def is_telling(low: float, high: float, repetitions: int) -> bool:
    """Whether an interval says something: with two repetitions it spans more than all of Dice."""
    return repetitions >= LEAST_FOR_INTERVAL and isfinite(high - low) and high - low <= WIDEST
