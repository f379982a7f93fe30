"""The semi-supervised trainer: fine-tuning that also learns from images without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.config import Config
from nnssl.data.supervised_batches import PairedBatches, UnlabelledImages, resize_batches
from nnssl.finetuning.semi_supervised import Lesson, SemiSupervised, drop_channels
from nnssl.leakage.ancestry import record_patients
from nnssl.leakage.unlabelled import ChosenImages, PretrainingFold, choose_images, find_recorded
from nnssl.losses.pseudo_labels import MOST_CLASSES, PseudoLabels, count_values
from nnssl.modules.cluster_metrics import paint, shade
from nnssl.modules.panels import Panel, Row
from nnssl.nnunet.images import image_file
from nnssl.nnunet.paths import own_folder
from nnssl.nnunet.planned_network import refuse_cascade
from nnssl.training.device_augmentation import DeviceAugmentation
from nnssl.training.finetuner import SCHEMA, nnSSLFinetuner
from nnssl.training.lessons import find_classes
from nnssl.training.partner import Partner
from nnssl.training.pictures import COLUMNS, save_panel


class nnSSLSemiSupervised(nnSSLFinetuner):
    """Fine-tuning with a teacher: see `SemiSupervised` for what is learned, and how.

    The teacher is the running average of the weights (`average_decay`), or a second network.
    """

    config_name = "nnSSLSemiSupervisedTrainer"
    schema = {**SCHEMA, "semi_supervised": SemiSupervised}  # noqa: RUF012

    def begin_state(self) -> None:
        super().begin_state()
        self.epoch_terms: list[dict[str, float]] = []
        self.dropped_rows = 0
        self.said: PseudoLabels | None = None  # of the last step
        self.lesson: Lesson | None = None
        self.partner: Partner | None = None
        self.other_outputs: list[dict[str, Any]] = []
        self.collections, self.unlabelled_cases = ChosenImages(), list[str]()

    def initialize(self) -> None:
        refuse_cascade(self.configuration_manager, self.configuration_name)
        super().initialize()
        self._watch_features(self.planned_network)

    def _apply(self, config: Config) -> None:
        super()._apply(config)
        self.semi = SemiSupervised(**config.sections["semi_supervised"])

    @property
    def needs_average(self) -> bool:
        return super().needs_average or self.semi.consistency != "cross"

    def _begin_average(self) -> None:
        super()._begin_average()
        if self.semi.consistency == "cross":
            self.partner = Partner(self)
            self._watch_features(self.partner.planned_network)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.partner is not None:
            self.partner.begin_epoch()

    @property
    def steps(self) -> int:
        return self.settings.num_epochs * self.settings.num_iterations_per_epoch

    # ------------------------------------------------------------------ images without labels

    def find_cases(self) -> dict[str, Any]:
        cases = super().find_cases()
        return {**cases, "without label": self.fold_cases} if cases else {}

    def make_batches(self, loader: Any) -> Callable[[int], dict[str, Any]]:
        """Labelled cases, and from `supervised_share` on images without labels beside them."""
        size = loader.batch_size
        unlabelled = max(1, min(size - 1, round(self.semi.unlabelled_share * size)))
        labelled = max(1, size - unlabelled)
        images = UnlabelledImages(self._find_unlabelled())
        self.print_to_log_file(
            f"Semi-supervised: {len(images.identifiers)} images without labels; a step sees "
            f"{labelled} labelled and {unlabelled} unlabelled samples (the plan's batch: {size})"
        )
        return PairedBatches(
            self.seed_batches(loader, "train"),
            self.seed_batches(resize_batches(loader, labelled), "train"),
            self.seed_batches(resize_batches(loader, unlabelled, images), "unlabelled"),
            math.ceil(self.semi.supervised_share * self.steps),
        )

    def _find_unlabelled(self) -> dict[str, Path]:
        """Name -> file: training cases of the fold without label, and images of collections."""
        assert self.labelled is not None
        preprocessed = Path(self.preprocessed_dataset_folder)
        seen = set() if self.labelled.slices is not None else set(self.labelled.cases)
        self.unlabelled_cases = [case for case in self.fold_cases if case not in seen]
        files = {case: image_file(preprocessed, case) for case in self.unlabelled_cases}
        self.collections = self._choose_collections(preprocessed)
        for one in self.collections.members:
            name = f"{one.collection}/{one.image.identifier}"
            files[name] = image_file(one.folder, one.image.identifier)
        if not files:
            raise ValueError(
                "semi-supervised fine-tuning needs images without labels, and there are none: all "
                f"{len(self.labelled.cases)} training cases of the fold are labelled. Give a label "
                "budget (labels.patients=2), add images (nnssl_preprocess_unlabelled), or train "
                "with nnSSLFinetuneTrainer."
            )
        return files

    def _choose_collections(self, preprocessed: Path) -> ChosenImages:
        if self.stored is not None:
            return find_recorded(own_folder(preprocessed), self.stored["cases"]["unlabelled"])
        fold = PretrainingFold(
            preprocessed,
            self.preprocessing,
            tuple(self.fold_cases),
            () if self.fold == "all" else tuple(self.fold_validation),
        )
        chosen = choose_images(fold, self.semi.unlabelled)
        if chosen.members or chosen.left_out:
            self.print_to_log_file(f"Beside the training cases: {chosen.describe()}")
        return chosen

    # ------------------------------------------------------------------ a step

    def augment(self, batch: dict[str, Any], augmentation: DeviceAugmentation) -> dict[str, Any]:
        batch = super().augment(batch, augmentation)
        if "unlabelled" in batch:
            images = batch["unlabelled"].to(self.device, non_blocking=True)
            keys = self.make_keys(len(images), len(batch["data"]))
            batch["unlabelled"], _ = augmentation.stock(images, None, keys)
        return batch

    def make_lesson(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the student learns in this step; a partner has learned its own lesson by then."""
        if "unlabelled" not in batch:
            made = super().make_lesson(batch)
            self._let_partner_learn(made)
            return made
        weak = batch["unlabelled"].to(self.device, non_blocking=True)
        labelled = self.move_labelled(batch)
        teacher = self.planned_network if self.average is None else self.average.module
        if self.partner is not None:
            own = self.ask(self.planned_network, weak)
            teacher = self.partner.planned_network
        said = self.ask(teacher, weak)
        count = len(labelled[0])
        keys = self.make_keys(count), self.make_keys(len(weak), count)
        spacing = tuple(self.configuration_manager.spacing)[-(weak.ndim - 2) :]
        unlabelled = weak, self.semi.strengthen(weak, keys[1], spacing)
        if self.partner is not None:
            lesson = self._compose(labelled, unlabelled, own, keys)
            self.dropped_rows = lesson.dropped
            self._let_partner_learn(self.as_batch(lesson))
        lesson = self._compose(labelled, unlabelled, said, keys)
        self.dropped_rows, self.said, self.lesson, self.weak = lesson.dropped, said, lesson, weak
        return self.as_batch(lesson)

    def _let_partner_learn(self, batch: dict[str, Any]) -> None:
        if self.partner is not None:
            with self.partner.in_place(), self.chosen_precision():
                nnUNetTrainer.train_step(self, batch)

    def _compose(
        self,
        labelled: tuple[torch.Tensor, torch.Tensor],
        unlabelled: tuple[torch.Tensor, torch.Tensor],
        said: PseudoLabels,
        keys: tuple[torch.Tensor, torch.Tensor],
    ) -> Lesson:
        weight = self.semi.find_weight(self.step, self.steps)
        return self.semi.compose(labelled, unlabelled, said, keys, self.loss.form, weight)

    @torch.no_grad()
    def ask(self, network: torch.nn.Module, images: torch.Tensor) -> PseudoLabels:
        """What a network says of weak views; it runs as in a stock training step."""
        trains = network.training
        network.eval()
        with self.autocast():
            logits = network(images)
        network.train(trains)
        logits = logits if isinstance(logits, torch.Tensor) else logits[0]
        return self.semi.ask_teacher(logits.float(), self.loss.form)

    def _watch_features(self, network: torch.nn.Module) -> None:
        network.get_submodule("encoder").register_forward_hook(
            # a function, since a copy of the network would copy the trainer of a bound method
            lambda encoder, _, features: self._drop_features(encoder, features)
        )

    def _drop_features(self, encoder: torch.nn.Module, features: list[torch.Tensor]) -> Any:
        """Hook of the encoders: of the student's, and of copies, which are asked in `eval`."""
        if not self.dropped_rows or not encoder.training:
            return features
        return drop_channels(features, self.dropped_rows, self.semi.feature_dropout)

    def save_or_leave(self) -> None:
        """Called once the step is taken, and before anything is saved."""
        self.dropped_rows = 0
        terms = {**self.loss.terms, **self._describe_confidence()}
        values = torch.stack([value.float() for value in terms.values()]).tolist()  # one transfer
        found = dict(zip(terms, values, strict=True))
        self.epoch_terms.append({n: v for n, v in found.items() if n in self.loss.terms or v >= 0})
        super().save_or_leave()

    def _describe_confidence(self) -> dict[str, torch.Tensor]:
        """Share of the voxels that count, of all and of each class of the teacher's.

        Negative for a class that does not occur; none of the classes where they are very many.
        """
        if self.said is None:
            return {}
        counted, classes, form = self.said.counted, self.said.classes, self.loss.form
        shares = {"counted": counted.float().mean()}
        count = 2**form.regions if form.regions else self.said.probabilities.shape[1]
        if count <= MOST_CLASSES:
            there, taken = count_values(classes, count), count_values(classes, count, counted)
            each = torch.where(there > 0, taken / there.clamp_min(1), -1.0)
            shares |= {f"counted_class_{value}": each[value] for value in range(count)}
        return shares

    # ------------------------------------------------------------------ log and pictures

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        names = dict.fromkeys(name for terms in self.epoch_terms for name in terms)
        values = {n: [terms[n] for terms in self.epoch_terms if n in terms] for n in names}
        means = {name: float(np.mean(found)) for name, found in values.items()}
        weight = self.semi.find_weight(self.step - 1, self.steps)
        self.history.log(self.current_epoch, {**means, "unlabelled_weight": weight})
        self.print_to_log_file(
            "Semi-supervised: " + ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
        )
        self.epoch_terms = []
        done = self.current_epoch + 1
        last = done == self.num_epochs
        if self.local_rank == 0 and (last or done % self.settings.save_every == 0):
            self._draw(done)

    def _draw(self, epoch: int) -> None:
        """Image without label, teacher, voxels that count, what the student saw, its answer."""
        lesson, student = self.lesson, self.loss.student
        if self.said is None or student is None or lesson is None or lesson.comparison is None:
            return
        form, rows = self.loss.form, lesson.comparison.rows
        count = 2**form.regions if form.regions else student.shape[1]
        shown = len(self.weak)
        answer = find_classes(student[rows][-shown:], form.regions > 0)
        panel = {
            "image without labels": shade(self.weak),
            "the teacher says": paint(self.said.classes[:, 0], count),
            "counts (white)": shade(self.said.counted.float()),
            "the student sees": shade(lesson.images[rows][-shown:]),
            "the student says": paint(answer[:, 0], count),
        }
        folder = Path(self.output_folder) / "pictures"
        folder.mkdir(exist_ok=True)
        save_panel(
            Panel([Row(name, images[:COLUMNS]) for name, images in panel.items()]),
            folder / f"epoch_{epoch:04d}_pseudo_labels.png",
            self.heading,
        )

    @property
    def other(self) -> str:
        """Which weights are validated beside those of what will be the finished model."""
        if self.partner is not None:
            return "second network"
        return "teacher" if self.settings.weights_average == "none" else "student"

    @contextmanager
    def _other_weights(self) -> Iterator[None]:
        if self.partner is not None:
            with self.partner.in_place():
                self.network.eval()
                yield
        elif self.other == "student":
            yield
        else:
            assert self.average is not None
            with self.average.in_place():
                yield

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, of what will be the finished model; the other of both is told beside it."""
        output = super().validation_step(batch)
        with self._other_weights(), self.chosen_precision():
            self.other_outputs.append(nnUNetTrainer.validation_step(self, batch))
        return output

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        sums = [
            sum(output[name] for output in self.other_outputs)
            for name in ("tp_hard", "fp_hard", "fn_hard")
        ]
        self.other_outputs = []
        hit, false, missed = (np.asarray(each, float) for each in sums)
        with np.errstate(invalid="ignore"):
            dice = 2 * hit / (2 * hit + false + missed)
        self.print_to_log_file(f"Pseudo Dice of the {self.other}: {np.round(dice, 4).tolist()}")

    # ------------------------------------------------------------------ checkpoints

    def compose_checkpoint(self) -> dict[str, Any]:
        checkpoint = super().compose_checkpoint()
        checkpoint["nnssl"]["epoch_terms"] = self.epoch_terms
        if self.partner is not None:
            checkpoint["nnssl"]["partner"] = self.partner.to_dict()
        return checkpoint

    def _record_cases(self) -> dict[str, Any] | None:
        """Whose images these weights learn on: labelled cases, unlabelled cases, collections."""
        if self.labelled is None:
            return None
        cases = sorted({*self.labelled.cases, *self.unlabelled_cases})
        patients = record_patients(Path(self.preprocessed_dataset_folder_base), cases)
        return {"train": cases, "unlabelled": self.collections.record(), **patients}

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        assert self.stored is not None
        self.epoch_terms = list(self.stored["epoch_terms"])
        if self.partner is not None:
            self.partner.restore(self.stored["partner"])
