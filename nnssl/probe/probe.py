"""Probing encoders of one fold side by side, and the file that says what was read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from nnssl.probe.clusters import ClusterCases
from nnssl.probe.encoders import (
    OUTPUTS,
    RANDOM_SEED,
    EncoderResult,
    ProbeCases,
    build_random_network,
    isolate_generators,
    probe_encoder,
)
from nnssl.probe.fold import ProbeFold
from nnssl.probe.linear_probe import RIDGE
from nnssl.probe.settings import ProbeSettings
from nnssl.probe.volumes import VOXELS, Examples, Volumes, read_structures

READ = (
    "The labels of the cases under `fitted` and `scored` were read by this probe, never by "
    "pre-training."
)
NOT_READ = "No label was read; the metrics below need none."
NOTHING_CHOOSES = (
    "A measurement: nothing reads this file to choose a checkpoint, a setting or a duration. "
    "(Choosing by probe is nnssl_probe --choose, which stays inside the labelled patients.)"
)
METHOD = (
    "Dice: ridge regression to one-hot classes (every structure weighted the same, the background "
    "as much as all of them) on the standardised outputs of all encoder stages, upsampled; at the "
    "plan's resolution, mean over cases, draws and structures. Position: mean absolute error of "
    "the mean position of the nearest slices of other patients, in shares of the volume. NMI: "
    "normalised mutual information of labels and k-means clusters, fitted on any voxels of the "
    "training volumes; over all voxels of the scored volumes, and with every class weighted alike."
)

MakeNetwork = Callable[[], nn.Module]


class Measured(Protocol):
    """What is told of an encoder, see `EncoderResult`."""

    @property
    def terms(self) -> Mapping[str, float]: ...

    @property
    def seconds(self) -> float: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Probe:
    """The probe of one fold: the same cases, draws and voxels for every encoder.

    Attributes:
        seed: of the first draw.
        clusters: number of clusters whose mutual information with labels is told; None: not told.
    """

    fold: ProbeFold
    settings: ProbeSettings
    device: torch.device
    seed: int = 0
    clusters: int | None = None

    def __post_init__(self) -> None:
        if self.clusters is not None and self.clusters < 2:
            raise ValueError(f"clusters: found {self.clusters}, allowed from 2")

    def check(self) -> None:
        """Raises ValueError for more labelled patients than the fold has."""
        self._draw()

    def choose_cases(self) -> ProbeCases:
        """What is read, the same for every encoder."""
        drawn = self._draw()
        fitted = sorted({case for labelled in drawn for case in labelled.cases})
        scored = self.fold.choose_validation(self.settings.probe_volumes, drawn)
        table = {case.identifier: case for case in self.fold.read_table({*fitted, *scored})}
        rows, held_out = (tuple(table[case] for case in part) for part in (fitted, scored))
        draws = tuple(frozenset(labelled.cases) for labelled in drawn)
        structures = read_structures(self.fold.dataset_json)
        volumes = Volumes(self.fold.folder, structures, self.device)
        reason = volumes.explain_missing_labels([*fitted, *scored])
        if not scored and reason is None:
            reason = "no validation case is left beside the drawn patients"
        examples = clusters = None
        if reason is None:
            examples = Examples(volumes, fitted)
            if self.clusters is not None:
                clusters = ClusterCases.choose(self.clusters, volumes, rows, held_out)
        return ProbeCases(volumes, rows, held_out, draws, examples, reason, clusters)

    def probe(self, make: MakeNetwork, cases: ProbeCases) -> EncoderResult:
        """Probes a network that is made for it; random numbers outside stay as they are."""
        with isolate_generators(self.device):
            return probe_encoder(make(), cases)

    def probe_random(
        self, cases: ProbeCases, seed: int = RANDOM_SEED, outputs: int = OUTPUTS
    ) -> EncoderResult:
        """The planned network, randomly initialised by a seed (see `read_initial_state`)."""
        with isolate_generators(self.device, seed):
            network = build_random_network(self.fold, torch.device("cpu"), outputs)
        return self.probe(lambda: network.to(self.device), cases)

    def make_record(
        self, results: Mapping[str, Measured], cases: ProbeCases, **more: Any
    ) -> dict[str, Any]:
        """Content of `probe.json`."""
        reason = cases.why_no_labels
        record = {
            "labels": NOT_READ if reason else READ,
            "why_no_labels": reason,
            "choice": NOTHING_CHOOSES,
            "method": METHOD,
            **identify(self.fold),
            **more,
            "cases": {
                "fitted": [sorted(draw) for draw in cases.draws] if reason is None else [],
                "scored": [case.identifier for case in cases.scored] if reason is None else [],
                "looked_at_without_labels": sorted(
                    case.identifier for case in (*cases.fitted, *cases.scored)
                ),
            },
            "settings": {
                "patients": self._patients,
                "seeds": list(self._seeds),
                "voxels_per_class_and_volume": VOXELS,
                "ridge": RIDGE,
                "clusters": self.clusters,
            },
            "encoders": {name: result.to_dict() for name, result in results.items()},
            "seconds": round(sum(result.seconds for result in results.values()), 2),
        }
        return replace_nan(record)

    @property
    def _seeds(self) -> Sequence[int]:
        return range(self.seed, self.seed + self.settings.probe_draws)

    @property
    def _patients(self) -> int:
        """As many as asked for; the default becomes 1 where the fold trains on one patient."""
        wanted, default = self.settings.probe_patients, ProbeSettings.probe_patients
        records = self.fold.read_records(self.fold.train).values()
        return min(wanted, len({each.key for each in records})) if wanted == default else wanted

    def _draw(self) -> list[Any]:
        try:
            return self.fold.draw_labelled(self._patients, self._seeds)
        except ValueError as error:
            raise ValueError(
                f"probe.probe_patients: found {self.settings.probe_patients} ({error}). Lower it, "
                "or switch the probe off (probe_at_end: false, probe_every: 0)."
            ) from error


def identify(fold: ProbeFold) -> dict[str, Any]:
    """Which dataset, plans, configuration and fold, for the record."""
    return {
        "dataset": fold.manager.dataset_name,
        "plans": fold.manager.plans_name,
        "configuration": fold.configuration,
        "fold": fold.fold,
    }


def replace_nan(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {key: replace_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [replace_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
