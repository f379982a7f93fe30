"""Everything that is measured of one encoder, in one pass over the volumes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from nnssl.data.case_table import Case
from nnssl.modules.metrics import evaluating
from nnssl.probe.clusters import ClusterCases, FeatureClusters
from nnssl.probe.dice import DiceTable, Fit, Scorer
from nnssl.probe.features import Block, encode_blocks
from nnssl.probe.slices import Slices
from nnssl.probe.volumes import Examples, Volumes


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
        return slices.watch(case, encode_blocks(network, volumes.image(case.identifier)))

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
                scores[case.identifier] = scorer.score(stream, volumes.labels(case.identifier))
            else:
                deque(stream, maxlen=0)
    table = DiceTable(tuple(volumes.structures.values()), scores) if scores else None
    nmi = clusters.compute_nmi() if clusters else {}
    return EncoderResult(table, slices.measure(cases.queries), slices, perf_counter() - begin, nmi)
