"""Semi-supervised fine-tuning as tensors: what a student sees, and what it is to say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval
from skimage.measure import label as find_components
from torch import Tensor
from torch.nn.functional import interpolate

from nnssl.common.checks import Fraction, NotNegative, checked
from nnssl.losses.pseudo_labels import PseudoLabels, make_pseudo_labels
from nnssl.views import mixing
from nnssl.views.intensity import (
    OPERATIONS,
    Change,
    Exponent,
    Offset,
    Resolution,
    UpTo10,
    UpTo100,
    make_intensities,
)

Side = Annotated[float, Interval(gt=0, le=1)]
Share = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True)
class Target:
    """What is to be said of some rows of a batch, on full resolution.

    Attributes:
        weight: of its loss.
        rows: the rows of the batch.
        values: softmax: (n, 1, *S), the ignored label where nothing is asked; regions:
            (n, R + 1, *S), of which the last is 1 where nothing is asked.
    """

    weight: float
    rows: slice
    values: Tensor


@dataclass(frozen=True)
class TeacherView:
    """Rows of a batch that show images without labels, and what the teacher says of them.

    Attributes:
        rows: of the batch.
        probabilities: (n, K, *S).
        classes: (n, 1, *S), see `PseudoLabels`.
        mask: bool (n, 1, *S), the voxels that show an image without label.
        weight: of the squared difference of the probabilities; 0: they are only compared.
    """

    rows: slice
    probabilities: Tensor
    classes: Tensor
    mask: Tensor
    weight: float


@dataclass(frozen=True)
class Lesson:
    """What the student sees in a step, and all that it is to say.

    Attributes:
        images: (n, C, *S).
        targets: hard labels.
        comparison: with the teacher, None where no row shows an image without label.
        dropped: rows, the last ones, that are seen with dropped feature channels.
    """

    images: Tensor
    targets: tuple[Target, ...]
    comparison: TeacherView | None = None
    dropped: int = 0


@dataclass(frozen=True)
class LabelForm:
    """How labels are written: `ignored` is the label of voxels that do not count (softmax)."""

    regions: int  # number of regions; 0: softmax
    ignored: int

    def ignore(self, values: Tensor, where: Tensor) -> Tensor:
        """The labels with no answer asked at `where`, bool (n, 1, *S)."""
        if not self.regions:
            return torch.where(where, self.ignored, values)
        asked = values[:, : self.regions].bool()
        before = values[:, self.regions :].bool()
        return torch.cat([asked, where | before if before.shape[1] else where], 1)

    def complete(self, values: Tensor) -> Tensor:
        """Labels of nnU-Net's loader in this form; its own ignored voxels stay ignored."""
        return self.ignore(values, torch.zeros_like(values[:, :1], dtype=torch.bool))


def downsample(values: Tensor, size: Sequence[int]) -> Tensor:
    """Labels on a coarser grid, as nnU-Net makes those of deep supervision."""
    if tuple(values.shape[2:]) == tuple(size):
        return values
    return interpolate(values.float(), tuple(size), mode="nearest-exact").to(values.dtype)


def mix_labelled(images: Tensor, values: Tensor, keys: Tensor, mix: str, side: float) -> Lesson:
    """Labelled images mixed with each other, in pairs.

    Args:
        images: (n, C, *S).
        values: in the form of `LabelForm` (n, ..., *S).
        keys: int64 (n, 4).
        mix: `copy_paste`, `mixup` or `none`.
        side: of the box, see `draw_boxes`.
    """
    everything = slice(0, len(images))
    if mix == "none" or len(images) < 2:
        return Lesson(images, (Target(1.0, everything, values),))
    partners = mixing.draw_partners(keys).to(images.device, non_blocking=True)
    if mix == "copy_paste":
        box = mixing.draw_boxes(keys, images.shape[2:], side).to(images.device, non_blocking=True)
        mixed = torch.where(box, values[partners], values)
        pasted = torch.where(box, images[partners], images)
        return Lesson(pasted, (Target(1.0, everything, mixed),))
    share = mixing.draw_blend(keys[0])
    first = Target(share, everything, values)
    second = Target(1 - share, everything, values[partners])
    return Lesson(torch.lerp(images[partners], images, share), (first, second))


@checked
@dataclass(frozen=True)
class SemiSupervised:
    """Section `semi_supervised`: how images without labels are learned from.

    A first share of the steps is supervised alone. Then a teacher, the running average of the
    student or a second network, labels weak views (nnU-Net's own augmentation) of images without
    labels, and the student is to say the same of strong views: the same geometry, and further
    changes of intensity.

    Attributes:
        consistency: `fixmatch`: confident hard labels, by the loss of the segmentation;
            `mean_teacher`: squared difference of the probabilities at every voxel; `cross`: as
            `fixmatch`, between two networks that learn from each other, of which the first is kept
            (a step costs twice as much); `none`: images without labels are background to paste.
        mix: `copy_paste`: a box of an image without label into a labelled one and back; `cutmix`:
            boxes between images without labels; `mixup`: blends of all images; or `none`.
        confidence: of a hard label that counts; 0: all count.
        least_share: of every class, the surest share of voxels that counts in any case.
        unlabelled_weight: of the losses of images without labels; labelled ones weigh 1.
        unlabelled_share: of a step's samples.
        supervised_share: of the run's steps, the first ones, which see labelled images alone.
        ramp_share: of the run's steps, in which the weight grows from 0 after those.
        box: side of copy-paste's box, as a share of the patch.
        largest_component: keeps the largest connected component of every class of a hard label.
        feature_dropout: share of the feature channels that a third stream, of weak views, lacks;
            0: no such stream.
        unlabelled: images of `nnssl_preprocess_unlabelled` beside the fold's unlabelled training
            cases: all collections, none, or those of these names.
        noise: the strong view's changes of intensity, as of pre-training's views.
        blur: as above.
        brightness: as above.
        contrast: as above.
        low_resolution: as above.
        gamma: as above.
        gamma_inverted: as above.

    Reference:
        Sohn et al.: FixMatch. NeurIPS 2020, arXiv:2001.07685.
        Tarvainen, Valpola: Mean teachers. NeurIPS 2017, arXiv:1703.01780.
        Bai et al.: Bidirectional copy-paste. CVPR 2023, arXiv:2305.00673.
        Yang et al.: UniMatch. CVPR 2023, arXiv:2208.09910.
        Chen et al.: Cross pseudo supervision. CVPR 2021, arXiv:2106.01226.

    Differs from the papers: copy-paste pastes the strong view; the teacher averages the supervised
    steps too, in the place of a copy of the student; the strong view is made of this project's
    changes of intensity; `cross` has weak and strong views, and counts confident voxels only.
    """

    consistency: Literal["fixmatch", "mean_teacher", "cross", "none"] = "fixmatch"
    mix: Literal["copy_paste", "cutmix", "mixup", "none"] = "copy_paste"
    confidence: Fraction = 0.95
    least_share: Fraction = 0.2
    unlabelled_weight: NotNegative = 0.5
    unlabelled_share: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    supervised_share: Share = 0.35
    ramp_share: Share = 0.1
    box: Side = 2 / 3
    largest_component: bool = False
    feature_dropout: Share = 0.0
    unlabelled: bool | Sequence[str] = True
    noise: Change[UpTo10] | None = (0.3, 0.0, 0.3)
    blur: Change[UpTo100] | None = (0.5, 0.5, 2.0)
    brightness: Change[Offset] | None = (0.8, -0.5, 0.5)
    contrast: Change[UpTo10] | None = (0.8, 0.5, 1.5)
    low_resolution: Change[Resolution] | None = None
    gamma: Change[Exponent] | None = (0.5, 0.5, 2.0)
    gamma_inverted: Change[Exponent] | None = None

    def __post_init__(self) -> None:
        if self.mix == "mixup" and not self.asks_hard_labels:
            raise ValueError(
                f"semi_supervised: mix: mixup blends hard labels; consistency: {self.consistency} "
                "has none. Take consistency: fixmatch or cross, or another mix."
            )

    @property
    def asks_hard_labels(self) -> bool:
        """Whether the student learns hard labels of images without labels."""
        return self.consistency in ("fixmatch", "cross")

    def find_weight(self, step: int, steps: int) -> float:
        """Weight of images without labels in a step: 0 while supervised, then a linear ramp."""
        begin, ramp = self.supervised_share * steps, self.ramp_share * steps
        if step < begin:
            return 0.0
        return self.unlabelled_weight * min(1.0, (step - begin + 1) / max(1.0, ramp))

    def strengthen(self, images: Tensor, keys: Tensor, spacing: Sequence[float]) -> Tensor:
        """The strong view of weak ones (n, C, *S): further changes of intensity."""
        changes = {name: getattr(self, name) for name in OPERATIONS}
        with torch.autocast(images.device.type, enabled=False):
            for change in make_intensities(**changes):
                images = change(images, keys, "strong", spacing)
        return images

    def ask_teacher(self, logits: Tensor, form: LabelForm) -> PseudoLabels:
        """What a teacher's logits (n, K, *S) say, and which voxels count."""
        said = make_pseudo_labels(logits, form.regions > 0, self.confidence, self.least_share)
        if not self.largest_component:
            return said
        labels = _keep_largest(said.labels, form.regions > 0)
        return PseudoLabels(labels, said.counted, said.probabilities, said.classes)

    def compose(
        self,
        labelled: tuple[Tensor, Tensor],
        unlabelled: tuple[Tensor, Tensor],
        said: PseudoLabels,
        keys: tuple[Tensor, Tensor],
        form: LabelForm,
        weight: float,
    ) -> Lesson:
        """The images of a step and what is to be said of them.

        Rows: labelled ones, pairs of copy-paste (labelled with a box of an unlabelled one, then the
        other way round), unlabelled ones, and weak views for dropped features.

        Args:
            labelled: images (L, C, *S) and labels in the form `form`.
            unlabelled: weak views (U, C, *S), and the same strengthened.
            said: what the teacher says of them.
            keys: of the labelled images int64 (L, 4), of the unlabelled ones (U, 4).
            form: how labels are written.
            weight: of the losses of images without labels.
        """
        weak, strong = unlabelled
        labels = form.ignore(said.labels, ~said.counted)
        answers = _Answers(strong, labels, said.probabilities, said.classes)
        if self.mix == "cutmix":
            partners = mixing.draw_partners(keys[1]).to(strong.device)
            box = mixing.draw_cutmix_boxes(keys[1], strong.shape[2:]).to(
                strong.device, non_blocking=True
            )
            answers = answers[partners].pasted_into(answers, box)
        pairs = min(len(labelled[0]), len(strong)) if self.mix == "copy_paste" else 0
        lesson = self._paste(labelled, answers, pairs, keys[1], form, weight)
        if self.mix == "mixup":
            lesson = _blend(lesson, keys)
        if self.feature_dropout:
            begin, count = len(lesson.images), len(weak)
            target = Target(weight, slice(begin, begin + count), labels)
            images = torch.cat([lesson.images, weak])
            lesson = Lesson(images, (*lesson.targets, target), lesson.comparison, count)
        return lesson

    def _paste(
        self,
        labelled: tuple[Tensor, Tensor],
        answers: _Answers,
        pairs: int,
        keys: Tensor,
        form: LabelForm,
        weight: float,
    ) -> Lesson:
        """Labelled and unlabelled rows; the first `pairs` of both are mixed in both directions."""
        (images, values), first = labelled, slice(0, pairs)
        box = mixing.draw_boxes(keys[first], images.shape[2:], self.box).to(
            images.device, non_blocking=True
        )
        of_labelled = torch.cat([~box, box])
        a, b, c = images[first], answers[first], answers[pairs:]
        mixed = torch.where(of_labelled, torch.cat([a, a]), torch.cat([b.images, b.images]))
        twice = torch.cat([values[first]] * 2)
        asked = torch.cat([values[pairs:], form.ignore(twice, ~of_labelled)])
        both = answers[[*range(pairs), *range(len(answers.images))]]
        mask = torch.cat([~of_labelled, torch.ones_like(c.classes, dtype=torch.bool)])
        alone = len(images) - pairs
        rows = slice(alone, alone + len(mask))
        targets = [Target(1.0, slice(0, alone + 2 * pairs), asked)]
        if self.asks_hard_labels:
            targets.append(Target(weight, rows, form.ignore(both.labels, ~mask)))
        soft = weight if self.consistency == "mean_teacher" else 0.0
        comparison = TeacherView(rows, both.probabilities, both.classes, mask, soft)
        seen = torch.cat([images[pairs:], mixed, c.images])
        return Lesson(seen, tuple(targets), comparison)


@dataclass(frozen=True)
class _Answers:
    """Strong views of images without labels, and what the teacher says of them, row by row."""

    images: Tensor
    labels: Tensor
    probabilities: Tensor
    classes: Tensor

    def __getitem__(self, rows: Any) -> _Answers:
        return _Answers(*(values[rows] for values in vars(self).values()))

    def pasted_into(self, other: _Answers, box: Tensor) -> _Answers:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Answers(*(torch.where(box, own, theirs) for own, theirs in pairs))


def _blend(lesson: Lesson, keys: tuple[Tensor, Tensor]) -> Lesson:
    """mixup within the rows of every target (labelled, unlabelled), by one share."""
    share, images, targets = mixing.draw_blend(keys[0][0]), lesson.images.clone(), []
    for target, own in zip(lesson.targets, keys, strict=True):
        partners = mixing.draw_partners(own).to(images.device, non_blocking=True)
        before = lesson.images[target.rows]
        images[target.rows] = torch.lerp(before[partners], before, share)
        first = Target(target.weight * share, target.rows, target.values)
        other = target.values[partners]
        targets += [first, Target(target.weight * (1 - share), target.rows, other)]
    return Lesson(images, tuple(targets))


def _keep_largest(labels: Tensor, regions: bool) -> Tensor:
    """Hard labels without all but the largest component of every class (background aside)."""
    kept = labels.cpu().numpy().copy()
    for image in kept:
        channels = image if regions else image[0]
        for part in channels if regions else [channels]:
            for value in [True] if regions else np.unique(part[part > 0]):
                components = find_components(part == value)
                sizes = np.bincount(components.ravel())[1:]
                if len(sizes) > 1:
                    part[(components > 0) & (components != sizes.argmax() + 1)] = 0
    return torch.from_numpy(kept).to(labels.device)


def drop_channels(features: Sequence[Tensor], rows: int, share: float) -> list[Tensor]:
    """Feature maps of which the last rows lack a random share of their channels.

    The kept channels are scaled by `1 / (1 - share)`; drawn from torch's own generator, which a
    step seeds.
    """
    dropped = []
    for maps in features:
        kept = torch.rand((rows, maps.shape[1], *[1] * (maps.ndim - 2)), device=maps.device)
        factor = (kept >= share).to(maps.dtype) / (1 - share)
        dropped.append(torch.cat([maps[:-rows], maps[-rows:] * factor]))
    return dropped
