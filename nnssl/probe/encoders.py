"""Encoders: built from plans and weights, and everything that is measured of one in one pass."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor, nn

from nnssl.data.case_table import Case
from nnssl.finetuning.weights import Source, asked_keys, fit, load
from nnssl.modules.metrics import evaluating
from nnssl.nnunet.planned_network import build_network
from nnssl.probe.clusters import ClusterCases, FeatureClusters
from nnssl.probe.features import Block, encode_blocks
from nnssl.probe.fold import ProbeFold
from nnssl.probe.linear_probe import DiceTable, Fit, Scorer
from nnssl.probe.slices import Slices
from nnssl.probe.volumes import Examples, Volumes

RANDOM_SEED = 20_000_003
OUTPUTS = 2  # of the segmentation layers, which are never read


@contextmanager
def isolate_generators(device: torch.device, seed: int = RANDOM_SEED) -> Iterator[None]:
    """Random numbers drawn inside depend on the seed only, and change nothing outside."""
    python, array = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def read_initial_state(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Seed and outputs of the network that a run started from.

    A checkpoint that is no pre-training of nnSSL does not tell: then they are the probe's own.
    """
    config = checkpoint.get("nnssl", {}).get("config", {})
    seed = config.get("sections", {}).get("training", {}).get("seed")
    if seed is None:
        return RANDOM_SEED, OUTPUTS
    return seed, count_outputs(checkpoint["network_weights"])


def count_outputs(weights: Mapping[str, Tensor]) -> int:
    """Outputs of the segmentation layers of a planned U-Net."""
    return len(weights["decoder.seg_layers.0.weight"])


def build_random_network(
    fold: ProbeFold, device: torch.device, outputs: int = OUTPUTS
) -> nn.Module:
    """The planned U-Net as nnU-Net initialises it; call it inside `isolate_generators`.

    With the seed and the number of outputs of a pre-training run it is as that run began.
    """
    manager = fold.configuration_manager
    channels = determine_num_input_channels(fold.manager, manager, fold.dataset_json)
    return build_network(manager, channels, outputs).to(device)


def build_network_with(
    weights: Mapping[str, Tensor], fold: ProbeFold, device: torch.device, name: str
) -> nn.Module:
    """The planned U-Net with the encoder of a state dict.

    Raises:
        ValueError: the encoder does not fit these plans.
    """
    network = build_random_network(fold, torch.device("cpu"))
    transfer = fit(Source(weights), network, asked_keys(network, "encoder"))
    if min(transfer.share, transfer.share_of_encoder) < 1:
        raise ValueError(
            f"{name}: only {transfer.share:.1%} of the encoder's parameters fit plans "
            f"{fold.manager.plans_name}, configuration {fold.configuration}; the probe allows "
            f"checkpoints of these plans only.\n{transfer.table()}"
        )
    load(network, transfer)
    return network.to(device)


@dataclass(frozen=True)
class ProbeCases:
    """What is read, the same for every encoder.

    Attributes:
        volumes: reads images and labels.
        fitted: training volumes: fitted on where there are labels, else candidates for retrieval.
        scored: validation volumes.
        draws: cases of each draw of labelled patients.
        examples: voxels for fitting; None without labels.
        why_no_labels: why no label is read; None where labels are.
        clusters: voxels at which clusters and labels are compared; None: they are not.
    """

    volumes: Volumes
    fitted: tuple[Case, ...]
    scored: tuple[Case, ...]
    draws: tuple[frozenset[str], ...]
    examples: Examples | None
    why_no_labels: str | None
    clusters: ClusterCases | None

    @property
    def queries(self) -> list[str]:
        """Volumes whose slices are looked up among those of other patients."""
        return [case.identifier for case in self.scored or self.fitted]


@dataclass(frozen=True)
class EncoderResult:
    """Metrics of one encoder.

    Attributes:
        dice: None without labels or validation volumes.
        metrics: see `Slices.measure`.
        slices: embeddings, for the pictures.
        seconds: that it took.
        nmi: of k-means clusters and labels, see `ClusterCases.compute_nmi`; empty where not asked
            for.
    """

    dice: DiceTable | None
    metrics: Mapping[str, float]
    slices: Slices
    seconds: float
    nmi: Mapping[str, float] = field(default_factory=dict)

    @property
    def terms(self) -> dict[str, float]:
        """The numbers for tables and curves."""
        found = {} if self.dice is None else {"dice": self.dice.mean}
        return {**found, **self.metrics, **self.nmi}

    def to_dict(self) -> dict[str, Any]:
        """Plain record for `probe.json`."""
        record: dict[str, Any] = {**self.terms, "seconds": round(self.seconds, 2)}
        if self.dice is not None:
            record["dice_per_draw"] = self.dice.per_draw
            record["dice_per_structure"] = self.dice.per_structure
            record["dice_per_case"] = self.dice.per_case
        return record


def probe_encoder(network: nn.Module, cases: ProbeCases) -> EncoderResult:
    """Fits on the drawn training volumes, scores on the validation volumes, looks at slices."""
    begin = perf_counter()
    volumes, slices, scores = cases.volumes, Slices(), dict[str, Tensor]()
    fit = cases.examples and Fit(cases.examples, cases.draws, volumes.device)
    clusters = cases.clusters and FeatureClusters(cases.clusters)

    def encode(case: Case) -> Iterator[Block]:
        return slices.watch(case, encode_blocks(network, volumes.read_image(case.identifier)))

    with evaluating(network):
        for case in cases.fitted:
            for block in encode(case):
                if fit:
                    fit.add(case.identifier, block)
                if clusters:
                    clusters.fit_on(case.identifier, block)
        scorer = fit and Scorer(fit.solve())
        for case in cases.scored:
            stream = encode(case)
            if clusters:
                stream = clusters.watch(case.identifier, stream)
            if scorer:
                scores[case.identifier] = scorer.score(stream, volumes.read_labels(case.identifier))
            else:
                deque(stream, maxlen=0)
    table = DiceTable(tuple(volumes.structures.values()), scores) if scores else None
    nmi = clusters.compute_nmi() if clusters else {}
    return EncoderResult(table, slices.measure(cases.queries), slices, perf_counter() - begin, nmi)
