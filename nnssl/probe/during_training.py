"""The probe inside a pre-training run: on a copy, with its own random numbers, on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from nnssl.common.files import write_json
from nnssl.modules import unet
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.paths import PROBE_FILE
from nnssl.objectives import Objective
from nnssl.probe import pictures
from nnssl.probe.clusters import compute_objective_nmi
from nnssl.probe.encoders import (
    ProbeCases,
    build_network_with,
    count_outputs,
    isolate_generators,
)
from nnssl.probe.fold import ProbeFold
from nnssl.probe.probe import Measured, Probe
from nnssl.probe.random_encoder import recall_random
from nnssl.probe.settings import ProbeSettings

PRETRAINED, RANDOM, REFERENCE = "pretrained", "random", "reference"


@dataclass
class TrainingProbe:
    """Probes the encoder of a run beside a random one and a reference, which are probed once.

    Attributes:
        seed: of the run, by which its network was initialised.
        folder: output folder of the run.
        log: writes a line to the run's log.
        audit: further terms of the objective itself.
    """

    fold: ProbeFold
    settings: ProbeSettings
    objective: Objective
    seed: int
    device: torch.device
    folder: Path
    log: Callable[[str], None]
    audit: Callable[[], dict[str, float]] = dict

    def __post_init__(self) -> None:
        clusters = self.objective.cluster_count
        self.probe = Probe(self.fold, self.settings, self.device, clusters=clusters)
        self._cases: ProbeCases | None = None
        self._others: dict[str, Measured] = {}

    def check(self) -> None:
        """Refuses a wrong setting before the first step.

        Raises:
            ValueError: more patients than the fold has, or a reference that does not fit.
            FileNotFoundError: the reference does not exist.
        """
        if not self.settings.active:
            return
        self.probe.check()
        if self.settings.reference is not None:
            with isolate_generators(self.device):
                self._build_reference()

    def run(self, epochs: int, steps: int) -> dict[str, float]:
        """Probes, writes `probe.json` and the pictures, and returns the terms for the history.

        A failure is logged and returns no terms: it must not end a training.
        """
        begin = perf_counter()
        try:
            with isolate_generators(self.device):
                terms = self._run(epochs, steps)
        except Exception as error:
            self.log(
                f"WARNING: the probe failed and is left out here; training is not affected "
                f"({type(error).__name__}: {error})"
            )
            return {}
        return {**terms, "probe_seconds": perf_counter() - begin}

    def _run(self, epochs: int, steps: int) -> dict[str, float]:
        if self._cases is None:
            self._cases = self.probe.choose_cases()
        cases = self._cases
        trained = self.probe.probe(self._build_pretrained, cases)
        if RANDOM not in self._others:  # as this run began, where it took no `initial_weights`
            outputs = count_outputs(self.objective.network.state_dict())
            self._others[RANDOM] = recall_random(self.probe, cases, self.seed, outputs)
        reference = self.settings.reference
        if reference is not None and REFERENCE not in self._others:
            self._others[REFERENCE] = self.probe.probe(self._build_reference, cases)
        results: dict[str, Measured] = {PRETRAINED: trained, **self._others}
        more: dict[str, Any] = {"epochs": epochs, "steps": steps, "reference": reference}
        own = {}
        if cases.clusters is not None:
            own = compute_objective_nmi(self.objective, cases.volumes, cases.clusters)
            more["clusters"] = own
        write_json(self.folder / PROBE_FILE, self.probe.make_record(results, cases, **more))
        fold, folder = self.fold, self.folder / "pictures"
        pictures.draw(trained.slices, cases.queries, fold.partitions, folder, fold.folder)
        named = {f"probe_{key}_clusters": n for key, n in own.items()}
        return {**_name_terms(results), **named, **self.audit()}

    def _build_pretrained(self) -> Any:
        weights = unet.plain_state_dict(self.objective.network)
        return build_network_with(weights, self.fold, self.device, PRETRAINED)

    def _build_reference(self) -> Any:
        file = str(self.settings.reference)
        weights = read_checkpoint(file)["network_weights"]
        return build_network_with(weights, self.fold, self.device, f"probe.reference: {file}")


def _name_terms(results: Mapping[str, Measured]) -> dict[str, float]:
    """`probe_dice`, `probe_dice_random`, ...; chance is that of the pre-trained encoder's run."""
    return {
        f"probe_{key}" + (f"_{name}" if name != PRETRAINED else ""): value
        for name, result in results.items()
        for key, value in result.terms.items()
        if key != "position_chance" or name == PRETRAINED
    }
