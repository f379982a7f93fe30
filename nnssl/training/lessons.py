"""How nnU-Net's training step learns a lesson: its losses over mixed and pseudo-labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnssl.finetuning.semi_supervised import LabelForm, Lesson, TeacherView, downsample
from nnssl.losses.pseudo_labels import number_combinations, squared_difference

Outputs = Tensor | Sequence[Tensor]  # with deep supervision the finest comes first


@dataclass(frozen=True)
class LessonTarget:
    """A lesson in the place of nnU-Net's target, which its training step moves to the device."""

    lesson: Lesson

    def to(self, *_: Any, **__: Any) -> LessonTarget:
        """It is there already."""
        return self


class LessonLoss(nn.Module):
    """nnU-Net's loss; of a `LessonTarget` the weighted sum of nnU-Net's losses of its targets.

    Outputs in bfloat16 are taken in float32: on CPUs autocast leaves softmax and sums as they are.

    Args:
        stock: nnU-Net's loss for its own targets.
        masked: the same loss with voxels that do not count.
        form: how labels are written.

    Attributes:
        terms: name -> value of the last lesson, without gradient.
        student: logits of the last lesson's finest output, without gradient.
    """

    def __init__(self, stock: nn.Module, masked: nn.Module, form: LabelForm) -> None:
        super().__init__()
        self.stock, self.masked, self.form = stock, masked, form
        self.terms: dict[str, Tensor] = {}
        self.student: Tensor | None = None

    def forward(self, output: Outputs, target: Any) -> Tensor:
        single = isinstance(output, Tensor)
        outputs = [_widen(one) for one in ([output] if isinstance(output, Tensor) else output)]
        if not isinstance(target, LessonTarget):
            loss: Tensor = self.stock(outputs[0] if single else outputs, target)
            return loss
        lesson = target.lesson
        self.student = outputs[0].detach()
        losses = []
        for one in lesson.targets:
            values = [downsample(one.values, o.shape[2:]) for o in outputs]
            said = [o[one.rows] for o in outputs]
            losses.append(self.masked(said[0], values[0]) if single else self.masked(said, values))
        total = sum(t.weight * each for t, each in zip(lesson.targets, losses, strict=True))
        self.terms = {"supervised_loss": losses[0].detach()}
        if len(losses) > 1:
            self.terms["unsupervised_loss"] = losses[-1].detach()
        if lesson.comparison is not None:
            total = total + self._compare(outputs[0][lesson.comparison.rows], lesson.comparison)
        assert isinstance(total, Tensor)
        return total

    def _compare(self, logits: Tensor, comparison: TeacherView) -> Tensor:
        """Weighted squared difference with the teacher; also notes how far the two agree."""
        mask, regions = comparison.mask, self.form.regions > 0
        with torch.no_grad():
            same = find_classes(logits, regions) == comparison.classes
            self.terms["agreement"] = (same & mask).sum() / mask.sum().clamp_min(1)
        if not comparison.weight:
            return logits.new_zeros(())
        soft = squared_difference(logits, comparison.probabilities, mask, regions)
        self.terms["unsupervised_loss"] = soft.detach()
        return comparison.weight * soft


def _widen(output: Tensor) -> Tensor:
    return output.float() if output.dtype == torch.bfloat16 else output


def find_classes(logits: Tensor, regions: bool) -> Tensor:
    """The class of every voxel, or the number of its combination of regions, (n, 1, *S)."""
    if not regions:
        return logits.argmax(1, keepdim=True)
    return number_combinations(logits > 0)


def find_label_form(trainer: nnUNetTrainer) -> LabelForm:
    """How nnU-Net writes the labels of a dataset; without an ignored label, one beyond all."""
    manager = trainer.label_manager
    heads = int(manager.num_segmentation_heads)
    if manager.has_regions:
        return LabelForm(heads, -1)
    return LabelForm(0, heads if manager.ignore_label is None else int(manager.ignore_label))


def make_lesson_loss(trainer: nnUNetTrainer, build: Callable[[], nn.Module]) -> LessonLoss:
    """nnU-Net's loss of a trainer, as it is and as it would be with an ignored label."""
    stock, form, manager = build(), find_label_form(trainer), trainer.label_manager
    trainer.label_manager = copy(manager)
    trainer.label_manager._ignore_label = form.ignored
    try:
        return LessonLoss(stock, build(), form)
    finally:
        trainer.label_manager = manager
