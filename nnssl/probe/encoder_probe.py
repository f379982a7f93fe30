"""Everything that is measured of one encoder, in one pass over the volumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.data.case_store import Case
from nnssl.modules.features import Block, encode_blocks, evaluating
from nnssl.modules.linear_probe import LinearProbe
from nnssl.probe.clusters import ClusterCases, FeatureClusters
from nnssl.probe.dice import DiceTable, Examples, Fit, Scorer, dice
from nnssl.probe.slices import CellMap, Slices
from nnssl.probe.volumes import Volumes


@dataclass(frozen=True)
class ProbeCases:
    """What is read, the same for every encoder.

    Attributes:
        volumes: reads images and labels.
        fitted: training volumes: fitted on where there are labels, else candidates for retrieval.
        scored: validation volumes.
        draws: cases of each draw of labelled patients.
        examples: voxels for fitting; None without labels.
        clusters: voxels at which clusters and labels are compared; None: they are not.
    """

    volumes: Volumes
    fitted: tuple[Case, ...]
    scored: tuple[Case, ...]
    draws: tuple[frozenset[str], ...]
    examples: Examples | None
    clusters: ClusterCases | None = None


@dataclass(frozen=True)
class EncoderResult:
    """Metrics of one encoder.

    Attributes:
        dice: None without labels or validation volumes.
        metrics: see `Slices.metrics`.
        slices: embeddings, for the pictures.
        seconds: that it took.
        nmi: of k-means clusters and labels, see `ClusterCases.nmi`; empty where not asked for.
    """

    dice: DiceTable | None
    metrics: Mapping[str, float]
    slices: Slices
    seconds: float
    nmi: Mapping[str, float] = field(default_factory=dict)

    def terms(self) -> dict[str, float]:
        """The numbers for tables and curves."""
        found = {} if self.dice is None else {"dice": self.dice.mean}
        return {**found, **self.metrics, **self.nmi}

    def to_dict(self) -> dict[str, Any]:
        """Plain record for `probe.json`."""
        record: dict[str, Any] = {**self.terms(), "seconds": round(self.seconds, 2)}
        if self.dice is not None:
            record["dice_per_draw"] = self.dice.per_draw
            record["dice_per_structure"] = self.dice.per_structure
            record["dice_per_case"] = self.dice.per_case
        return record


def probe_encoder(network: nn.Module, cases: ProbeCases) -> EncoderResult:
    """Fits on the drawn training volumes, scores on the validation volumes, looks at slices."""
    begin = perf_counter()
    slices, found = Slices(), None
    clusters = None if cases.clusters is None else FeatureClusters(cases.clusters)
    with evaluating(network):
        fit = None
        if cases.examples is not None:
            fit = Fit(cases.examples, cases.draws, cases.volumes.device)
        for case in cases.fitted:
            for block in _blocks(network, cases.volumes, case, slices):
                if fit is not None:
                    fit.add(case.identifier, block)
                if clusters is not None:
                    clusters.fit_on(case.identifier, block)
        scorer = None if fit is None else Scorer(fit.solve())
        for case in cases.scored:
            stream = _blocks(network, cases.volumes, case, slices)
            if clusters is not None:
                stream = clusters.watching(case.identifier, stream)
            if scorer is None:
                _exhaust(stream)
            else:
                found = {**(found or {}), case.identifier: _score(stream, scorer, cases, case)}
    queries = [case.identifier for case in cases.scored or cases.fitted]
    table = DiceTable(tuple(cases.volumes.structures.values()), found) if found else None
    nmi = {} if clusters is None else clusters.nmi()
    return EncoderResult(table, slices.metrics(queries), slices, perf_counter() - begin, nmi)


def fit_and_score(
    network: nn.Module,
    volumes: Volumes,
    examples: Examples,
    held_out: Sequence[frozenset[str]],
) -> DiceTable:
    """Leave-one-out: each group of cases is scored by the classifier of all other groups.

    Args:
        network: the encoder.
        volumes: reads the images and labels of these cases, and of no other.
        examples: voxels of all these cases.
        held_out: groups of cases; each case in exactly one.
    """
    every = frozenset().union(*held_out)
    fit = Fit(examples, [every - group for group in held_out], volumes.device)
    found = {}
    with evaluating(network):
        for case in sorted(every):
            for block in encode_blocks(network, volumes.image(case)):
                fit.add(case, block)
        for group, probe in zip(held_out, fit.solve(), strict=True):
            for case in sorted(group):
                found[case] = _dice_of(network, volumes, case, probe)
    return DiceTable(tuple(volumes.structures.values()), found)


def _dice_of(network: nn.Module, volumes: Volumes, case: str, probe: LinearProbe) -> Tensor:
    scorer, labels = Scorer([probe]), volumes.labels(case)
    stream = encode_blocks(network, volumes.image(case))
    return dice(torch.stack([scorer.confusion(block, labels) for block in stream]).sum(0))


def _score(stream: Iterator[Block], scorer: Scorer, cases: ProbeCases, case: Case) -> Tensor:
    """(D, K - 1) Dice of one volume."""
    labels = cases.volumes.labels(case.identifier)
    return dice(torch.stack([scorer.confusion(block, labels) for block in stream]).sum(0))


def _blocks(network: nn.Module, volumes: Volumes, case: Case, slices: Slices) -> Iterator[Block]:
    """Blocks of a volume; its slice embeddings are kept when the last one has been taken."""
    cells = CellMap()
    for block in encode_blocks(network, volumes.image(case.identifier)):
        cells.add(block)
        yield block
    slices.add(case, cells)


def _exhaust(stream: Iterator[Block]) -> None:
    for _ in stream:
        pass
