"""The random encoder's result of a fold, kept beside the other caches as long as it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nnssl.common.files import hash_file, hash_json, read_json, stamp_file, write_json
from nnssl.common.versions import versions
from nnssl.nnunet.images import image_file
from nnssl.nnunet.paths import RANDOM_ENCODERS, cache_places, own_folder
from nnssl.probe.encoders import OUTPUTS, RANDOM_SEED, ProbeCases
from nnssl.probe.probe import Measured, Probe
from nnssl.probe.volumes import find_segmentation

CODE = ("probe", "modules")  # rooms by which the result is computed
PACKAGES = ("nnunetv2", "torch", "dynamic-network-architectures", "numpy", "scikit-learn")


class _Kept(TypedDict):
    signature: str
    terms: dict[str, float]
    record: dict[str, Any]


@dataclass(frozen=True)
class Recalled:
    """What an earlier probe has measured; terms and record as those of an `EncoderResult`."""

    terms: Mapping[str, float]
    record: Mapping[str, Any]
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**self.record, "recalled": True}


def recall_random(
    probe: Probe, cases: ProbeCases, seed: int = RANDOM_SEED, outputs: int = OUTPUTS
) -> Measured:
    """As `Probe.probe_random`, or what that gave before on the same data, by the same code."""
    fold, signature = probe.fold, _sign(probe, cases, seed, outputs)
    name = f"fold_{fold.fold}_seed_{seed}.json"
    places = cache_places(own_folder(fold.folder) / RANDOM_ENCODERS / name)
    for place in places:
        with suppress(OSError, ValueError):
            kept = read_json(place, _Kept)
            if kept["signature"] == signature:
                return Recalled(kept["terms"], kept["record"])
    result = probe.probe_random(cases, seed, outputs)
    content = {"signature": signature, "terms": result.terms, "record": result.to_dict()}
    with suppress(OSError):
        write_json(places[0], content)
    return result


def _sign(probe: Probe, cases: ProbeCases, seed: int, outputs: int) -> str:
    """Hash of all that the result follows from."""
    fold, rows = probe.fold, (*cases.fitted, *cases.scored)
    segmentations = {row.identifier: find_segmentation(fold.folder, row.identifier) for row in rows}
    package = Path(__file__).parents[1]
    return hash_json(
        {
            "architecture": fold.configuration_manager.configuration["architecture"],
            "dataset": fold.dataset_json,
            "cases": [list(map(repr, part)) for part in (cases.fitted, cases.scored)],
            "draws": [sorted(draw) for draw in cases.draws],
            "images": {c: stamp_file(image_file(fold.folder, c)) for c in segmentations},
            "labels": {c: file and stamp_file(file) for c, file in segmentations.items()},
            "why_no_labels": cases.why_no_labels,
            "probe": [seed, outputs, probe.clusters, probe.device.type],
            "code": [hash_file(f) for room in CODE for f in sorted((package / room).glob("*.py"))],
            "versions": versions(*PACKAGES),
        }
    )
