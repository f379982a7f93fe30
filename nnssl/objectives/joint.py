"""Several objectives at once, on the same views and one pass of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnssl.common.checks import Count, Positive, checked
from nnssl.modules.panels import Panel
from nnssl.modules.unet import Trained
from nnssl.objectives.base import SHARED, Batch, Context, Objective


class JointObjective(Objective):
    r"""Sum of other objectives, its parts, each with its weight and its own knobs.

    .. math:: L = \sum_i w_i L_i

    The parts see the same views. What encoder and decoder make of them is computed once, and the
    gradients of the parts add up in it. A joint objective needs what its parts need together: the
    stricter sampling, the most views and raw patches, the dense targets of all; it trains what any
    of them trains. A part may look at the first views only (`views`): contrast needs two, and the
    decoder, which costs as much as the encoder, then runs on one of them. The log has each part's
    terms under its name, `loss` and `collapse_loss` are the weighted sums. A batch in which one
    part finds nothing to learn from is skipped.

    Parts must be objectives whose network sees the views as they are (`Objective.shares`), not
    hidden, shuffled or cut into pieces, and they must agree on the groups of views.

    Reference: Doersch, Zisserman, *Multi-task self-supervised visual learning*, ICCV 2017,
    arXiv:1708.07860.

    Differs from the paper: the weights are fixed, and all tasks see the same batch.

    Args:
        parts: name of an objective -> its knobs, and those of `Part`; what is not named has its
            default.
    """

    kinds: ClassVar[Mapping[str, type[Objective]]] = {}
    seen: ClassVar[Mapping[str, int | None]] = {}  # views that each part looks at

    @checked
    @dataclass(frozen=True)
    class Part:
        """What a part has beside its own knobs.

        Attributes:
            weight: factor of the part's loss in the sum.
            views: how many of the views the part sees, the first ones; null: all.
        """

        weight: Positive = 1.0
        views: Count | None = None

    @classmethod
    def of(
        cls, kinds: Mapping[str, type[Objective]], parts: Mapping[str, Mapping[str, Any]] = {}
    ) -> type[JointObjective]:
        """The joint objective of parts of these kinds, and with these knobs: it needs what they do.

        Raises:
            ValueError: fewer than two parts, or some that cannot share the network's pass.
        """
        _check_parts(kinds)
        named, each = kinds.items(), kinds.values()
        least = [kind.least_samples for kind in each if kind.least_samples is not None]
        needs = {
            "__doc__": cls.__doc__,
            "kinds": dict(kinds),
            "seen": {name: parts.get(name, {}).get("views") for name in kinds},
            "sampling": "partitioned" if "partitioned" in [k.sampling for k in each] else "random",
            "least_samples": max(least, default=None),
            "default_views": _join_views([kind.default_views for kind in each]),
            "decodes": any(kind.decodes for kind in each),
            "best": None if None in [kind.best for kind in each] else "val_loss",
            "validated": tuple(
                f"{name}_{term}" for name, kind in named for term in ("loss", *kind.validated)
            ),
            "panels": {
                title: terms for name, kind in named for title, terms in _panels(name, kind)
            },
        }
        return type(cls.__name__, (cls,), needs)

    def __init__(
        self,
        network: nn.Module,
        context: Context,
        *,
        parts: Mapping[str, Mapping[str, Any]] = {},
    ) -> None:
        super().__init__(network, context)
        self.parts: Any = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        for name, kind in self.kinds.items():
            knobs = dict(parts.get(name, {}))
            own = {key: knobs.pop(key) for key in ("weight", "views") if key in knobs}
            self.weights[name] = self.Part(**own).weight
            part = kind(network, context, **knobs)
            del part._modules["network"]  # so that the state dict has the network's keys once
            object.__setattr__(part, "network", network)
            self.parts[name] = part
            self.dense_targets += part.dense_targets
            if part.cluster_count is not None and self.cluster_count is None:
                self.cluster_count, self._clusters = part.cluster_count, name
        self.dense_targets = tuple(dict.fromkeys(self.dense_targets))

    @classmethod
    def output_channels(cls, input_channels: int) -> int | None:
        found = [kind.output_channels(input_channels) for kind in cls.kinds.values()]
        return next((count for count in found if count is not None), None)

    @classmethod
    def count_decoded(cls, views: int) -> int:
        decoding = [cls.seen[name] for name, kind in cls.kinds.items() if kind.decodes]
        return max((min(seen or views, views) for seen in decoding), default=0)

    def describe(self) -> str:
        return " ".join(filter(None, (part.describe() for part in self.parts.values())))

    @property
    def trained(self) -> Trained:
        each = [part.trained for part in self.parts.values()]
        decoding = [one for one in each if one.decoder_levels != 0]
        return Trained(
            _most(one.encoder_stages for one in each),
            _most(one.decoder_levels for one in each),
            skips=any(one.skips for one in decoding) or not decoding,
            output=any(one.output for one in each),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        whole = {**batch, SHARED: {}}
        shared = {count: self._take_views(whole, count) for count in {*self.seen.values()}}
        found = {name: part(shared[self.seen[name]]) for name, part in self.parts.items()}
        logged = {
            f"{name}_{term}": value.detach()
            for name, terms in found.items()
            for term, value in terms.items()
        }
        sums = {
            term: torch.stack([w * found[name][term] for name, w in self.weights.items()]).sum()
            for term in ("loss", "collapse_loss")
            if all(term in terms for terms in found.values())
        }
        return {**logged, **sums}

    def _take_views(self, batch: Batch, count: int | None) -> Batch:
        """The first views, with what the encoder makes of all; None: all views."""
        if count is None:
            return batch
        views = dict(list(batch["views"].items())[:count])
        rows = sum(len(view.image) for view in views.values())
        maps = {"encoder": [stage[:rows] for stage in self.encode_views(batch)]}
        return {**batch, "views": views, SHARED: {torch.is_grad_enabled(): maps}}

    def after_step(self, batch: Batch, progress: float) -> None:
        for part in self.parts.values():
            part.after_step(batch, progress)

    def after_epoch(self) -> None:
        for part in self.parts.values():
            part.after_epoch()

    def clusters(self, image: Tensor) -> Tensor:
        """Those of the first part that has clusters."""
        found: Tensor = self.parts[self._clusters].clusters(image)
        return found

    def illustrate(self, batch: Batch) -> dict[str, Panel]:
        """The pictures of all parts."""
        return {
            f"{name}_{picture}": drawn
            for name, part in self.parts.items()
            for picture, drawn in part.illustrate(batch).items()
        }


def _check_parts(kinds: Mapping[str, type[Objective]]) -> None:
    """Raises ValueError unless all parts can look at the same views through the same pass."""
    if len(kinds) < 2:
        raise ValueError(f"objective.parts: found {list(kinds)}, allowed: two or more objectives")
    if alone := [name for name, kind in kinds.items() if not kind.shares]:
        raise ValueError(
            f"objective.parts: found {', '.join(alone)}, whose network sees other images than the "
            "views, so that a pass cannot be shared; allowed are objectives that see the views "
            f"themselves, as {', '.join(n for n in kinds if n not in alone) or 'contrastive'} does"
        )
    groups = {name: sorted(kind.default_views) for name, kind in kinds.items()}
    if len({tuple(names) for names in groups.values()}) > 1:
        raise ValueError(
            f"objective.parts: found the groups of views {groups}, allowed are parts that see the "
            "same groups"
        )


def _join_views(views: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per group the largest number of views; of other knobs the first that is given counts."""
    joined: dict[str, dict[str, Any]] = {}
    for groups in views:
        for name, knobs in groups.items():
            known = joined.get(name, {})
            count = max(known.get("count", 1), knobs.get("count", 1))
            joined[name] = {**knobs, **known, "count": count}
    return joined


def _panels(name: str, kind: type[Objective]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The panels of a part, its terms and titles under its name."""
    panels = {**kind.panels, "loss": ("loss", "collapse_loss", *kind.panels.get("loss", ()))}
    for title, terms in panels.items():
        yield f"{name}: {title}", tuple(f"{name}_{term}" for term in terms)


def _most(counts: Iterable[int | None]) -> int | None:
    """The largest count; None is all."""
    known = list(counts)
    return None if None in known else max(known)  # type: ignore[type-var]
