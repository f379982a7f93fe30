"""Series that hold several volumes: time points, b values, echoes and the like, told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations, pairwise
from typing import Any, NamedTuple

Value = Hashable  # of a mark; None: the header lacks it
PRIVATE_B = ((0x0019, 0x100C), (0x0043, 0x1039))  # Siemens; GE, which adds a multiple of 1e9
# mark -> the attribute that it is read from
EXACT = {
    "time": "TemporalPositionIdentifier",
    "b": "DiffusionBValue",
    "direction": "DiffusionGradientOrientation",
    "echo": "EchoNumbers",
    "te": "EchoTime",
    "ti": "InversionTime",
    "type": "ImageType",
    "acquisition": "AcquisitionNumber",
}
ONE_PER_VOLUME = ("time", "b", "echo")  # what slices of one volume cannot differ in
PHASE, CLOCKS = "TriggerTime", ("Acquisition", "Content")
TAGS = [
    *EXACT.values(),
    PHASE,
    *(f"{clock}{each}" for clock in CLOCKS for each in ("Date", "Time")),
    *PRIVATE_B,
]
MOST_NAMED = 6
ADVICE = "Choose other series, or convert it by dcm2niix and give its NIfTI files"


class Marks(NamedTuple):
    """What a slice says of the volume that it belongs to.

    Attributes:
        place: Position and axes in the patient, rounded; of the first of several frames.
        exact: Equal for all slices of a volume; in the order of `EXACT`.
        phase: Of a heartbeat, ms.
        clock: Date and time of acquisition.
    """

    place: tuple[float, ...]
    exact: tuple[Value, ...]
    phase: float | None
    clock: tuple[str, float] | None


def read_marks(dataset: Any, place: Sequence[float]) -> Marks:
    """Marks of a header, of which `TAGS` were read."""
    exact = [_plain(dataset.get(attribute)) for attribute in EXACT.values()]
    b = [*EXACT].index("b")
    if exact[b] is None:
        exact[b] = _private_b(dataset)
    clock = next(
        (
            (str(dataset.get(f"{each}Date") or ""), float(dataset[f"{each}Time"].value))
            for each in CLOCKS
            if dataset.get(f"{each}Time")
        ),
        None,
    )
    phase = dataset.get(PHASE)
    rounded = tuple(round(value, 2) + 0.0 for value in place)  # + 0.0: no negative zero
    return Marks(rounded, tuple(exact), None if phase is None else float(phase), clock)


def part_volumes(slices: Sequence[Marks]) -> dict[str, list[int]]:
    """Name -> numbers of the slices of each volume of a series; a single volume has no name.

    Volumes are told apart by the fewest marks by which every volume has one slice at every place;
    else by the phase of the heartbeat, or by times of acquisition that do not overlap.

    Raises:
        ValueError: Slices lie at one place, and nothing tells which belong together; or slices of
            one volume differ in what a volume has one of.
    """
    places: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for number, each in enumerate(slices):
        places[each.place].append(number)
    if len(places) == len(slices):
        _check_one_volume(slices, slices, "")
        return {"": [*range(len(slices))]}
    parted = _part_by_marks(slices, len(places)) or _part_by_order(slices, [*places.values()])
    if parted is None:
        raise ValueError(
            f"is a series of {len(slices)} slices at {len(places)} places, and nothing tells which "
            f"belong to one volume ({_describe(slices)}). {ADVICE}"
        )
    for name, numbers in parted.items():
        _check_one_volume([slices[k] for k in numbers], slices, name)
    return parted


def _part_by_marks(slices: Sequence[Marks], places: int) -> dict[str, list[int]] | None:
    varying = [k for k in range(len(EXACT)) if len({each.exact[k] for each in slices}) > 1]
    for size in (1, 2, 3):
        found: dict[frozenset[frozenset[int]], dict[str, list[int]]] = {}
        for chosen in combinations(varying, size):
            groups: dict[tuple[Value, ...], list[int]] = defaultdict(list)
            for number, each in enumerate(slices):
                groups[tuple(each.exact[k] for k in chosen)].append(number)
            if all(_is_complete(slices, numbers, places) for numbers in groups.values()):
                key = frozenset(map(frozenset, groups.values()))
                found.setdefault(key, _name_groups(chosen, groups))
        if len(found) > 1:  # two marks contradict each other
            return None
        if found:
            return next(iter(found.values()))
    return None


def _is_complete(slices: Sequence[Marks], numbers: Sequence[int], places: int) -> bool:
    return len(numbers) == places == len({slices[k].place for k in numbers})


def _name_groups(
    marks: Sequence[int], groups: Mapping[tuple[Value, ...], list[int]]
) -> dict[str, list[int]]:
    """`b800`, `time2echo1`: values where they are whole numbers, else their ranks."""
    kinds = [*EXACT]
    words: list[dict[Value, str]] = []
    for position, mark in enumerate(marks):
        values: list[Any] = sorted({key[position] for key in groups}, key=str)
        with suppress(TypeError):  # numbers by their size
            values.sort()
        whole = all(isinstance(value, int) and value >= 0 for value in values)
        ranks = {value: value if whole else rank for rank, value in enumerate(values, 1)}
        words.append({value: f"{kinds[mark]}{rank}" for value, rank in ranks.items()})
    named = {
        "".join(word[value] for word, value in zip(words, key, strict=True)): numbers
        for key, numbers in groups.items()
    }
    return dict(sorted(named.items(), key=lambda item: (len(item[0]), item[0])))


def _part_by_order(
    slices: Sequence[Marks], at_places: Sequence[Sequence[int]]
) -> dict[str, list[int]] | None:
    """The k-th slice of every place, by phase or by time."""
    if len({len(each) for each in at_places}) > 1:
        return None
    known: dict[str, list[Any]] = {
        "phase": [each.phase for each in slices],
        "time": [each.clock for each in slices],
    }
    for kind, values in known.items():
        if None in values:
            continue
        ordered = [sorted(each, key=values.__getitem__) for each in at_places]
        if any(len({values[k] for k in each}) < len(each) for each in ordered):
            continue
        volumes = [list(each) for each in zip(*ordered, strict=True)]
        spans = [sorted(values[k] for k in each) for each in volumes]
        apart = all(before[-1] < after[0] for before, after in pairwise(spans))
        if kind == "phase" or apart:
            return {f"{kind}{number}": each for number, each in enumerate(volumes, 1)}
    return None


def _check_one_volume(volume: Sequence[Marks], slices: Sequence[Marks], name: str) -> None:
    kinds = [*EXACT]
    for kind in ONE_PER_VOLUME:
        k = kinds.index(kind)
        values = {each.exact[k] for each in volume} - {None}
        if len(values) > 1:
            raise ValueError(
                f"is a series of which slices at different places differ in {EXACT[kind]} "
                f"({_describe(slices)}), so that they are no one volume{f' ({name})' * bool(name)}"
                f". {ADVICE}"
            )


def _describe(slices: Sequence[Marks]) -> str:
    """What headers say, as far as it differs."""
    found = []
    for k, attribute in enumerate(EXACT.values()):
        values = sorted({str(each.exact[k]) for each in slices})
        if len(values) > 1:
            more = ", ..." if len(values) > MOST_NAMED else ""
            found.append(f"{attribute} {', '.join(values[:MOST_NAMED])}{more}")
    return "; ".join(found) or f"{', '.join(EXACT.values())}: all equal or missing"


def _plain(value: Any) -> Value:
    """Whole numbers where they are, numbers, text, or a tuple of these."""
    if value is None or value == "":
        return None
    if isinstance(value, (list, tuple)) or (
        hasattr(value, "__iter__") and not isinstance(value, str)
    ):
        return tuple(_plain(each) for each in value)
    with suppress(TypeError, ValueError):
        number = float(value)
        return int(number) if number == int(number) else round(number, 4)
    return str(value)


def _private_b(dataset: Any) -> Value:
    for tag in PRIVATE_B:
        value = dataset[tag].value if tag in dataset else None
        if isinstance(value, bytes):  # of a file without explicit types
            value = value.decode("ascii", "replace").strip("\0 ").split("\\")
        plain = _plain(value)
        first = plain[0] if isinstance(plain, tuple) and plain else plain
        if isinstance(first, int):
            return first % 1_000_000_000
    return None
