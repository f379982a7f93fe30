"""What happens in a pre-training step, in a validation step, and at the end of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from nnssl.data.pretraining_batches import make_validation_batches
from nnssl.losses.contrastive import NoSignalError
from nnssl.modules import unet
from nnssl.modules.metrics import evaluating
from nnssl.nnunet.paths import BEST
from nnssl.probe import shortcuts
from nnssl.probe.during_training import TrainingProbe
from nnssl.training.epoch_log import describe_epoch, describe_probe, find_troubles
from nnssl.training.history import History, tell_loggers
from nnssl.training.pictures import save_pictures
from nnssl.training.pretraining_setup import PretrainingSetup
from nnssl.training.progress_picture import draw_progress

SECONDS_BETWEEN_PLOTS = 30.0


class PretrainingLoop(PretrainingSetup):
    """One optimiser step, one validation step, and what is logged of them.

    Attributes:
        history: one number per term and epoch.
        epoch_terms: terms of each step of the epoch that is under way.
        skipped_steps: steps whose loss or gradient was not finite, or whose batch held nothing to
            learn from; nothing is left of them.
        probe: looks at the frozen features now and then.
    """

    probe: TrainingProbe

    def begin_state(self) -> None:
        super().begin_state()
        self.history = History()
        self.epoch_terms: list[Mapping[str, float]] = []
        self.skipped_steps = self._skipped_in_a_row = 0
        self.val_terms: Mapping[str, float] = {}  # terms of the weights as they are now
        self._last_plot = time()  # a short run is drawn once, at its end

    def on_train_epoch_start(self) -> None:
        self.val_terms = {}
        self.network.train()
        if self.trained.encoder_stages == 0:  # frozen with its running statistics
            for module in unet.encoder_parts(self.objective.network):
                module.eval()
        self._waited = self.dataloader_train.seconds_waited
        self._train_seconds = time()
        # a run that was stopped inside an epoch goes on there; nnU-Net's loop counts these steps
        per_epoch = self.settings.num_iterations_per_epoch
        self.num_iterations_per_epoch = per_epoch - (self.step - self.current_epoch * per_epoch)

    def train_step(self, batch: dict[str, Any]) -> Mapping[str, float]:
        rate = self.settings.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        prepared = self.prepare(batch)
        self.optimizer.zero_grad(set_to_none=True)
        statistics = self._copy_statistics()
        terms = self._forward(prepared)
        (broken,) = self.agree_on(not terms or not terms["loss"].detach().isfinite())
        finite = not broken and self._descend(terms["loss"])
        self._count_skipped(finite)
        self.step += 1
        if finite:
            self.objective.after_step(prepared, self.step / self.settings.steps)
        else:
            for buffer, before in statistics:
                buffer.copy_(before)
        logged = self._to_floats(terms) if finite else {}
        self.epoch_terms.append(logged)
        self.save_or_leave()
        return logged

    def _forward(self, prepared: dict[str, Any]) -> Mapping[str, Tensor]:
        """Terms of a batch; none where it holds nothing to learn from."""
        with suppress(NoSignalError), self.autocast():
            return self.network(prepared)  # type: ignore[no-any-return]
        return {}

    def _copy_statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Running statistics of normalisations, the only state that a forward pass changes, each
        with a copy: a skipped step takes it back."""
        kinds = nn.modules.batchnorm._NormBase
        layers = [layer for layer in self.network.modules() if isinstance(layer, kinds)]
        return [(b, b.clone()) for layer in layers for b in layer.buffers(recurse=False)]

    def _descend(self, loss: Tensor) -> bool:
        """One step of the optimiser, unless the gradient, the same on all ranks, is not finite.

        The scaler of float16 then lowers its scale.
        """
        scaler = self.grad_scaler
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(self.optimizer)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip_gradient)
        finite = bool(norm.isfinite())
        if finite and scaler is None:
            self.optimizer.step()
        elif finite and scaler is not None:
            scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()
        return finite

    def _count_skipped(self, finite: bool) -> None:
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        self.skipped_steps += not finite
        if self._skipped_in_a_row > self.settings.max_skipped_steps:
            raise RuntimeError(
                f"The loss or its gradient was not finite, or a batch held nothing to learn from, "
                f"{self._skipped_in_a_row} times in a row (step {self.step}). Lower "
                "training.initial_lr, or look for NaN in the preprocessed images; "
                "checkpoint_latest.pth holds the last weights that were saved."
            )

    @staticmethod
    def _to_floats(terms: Mapping[str, Tensor]) -> dict[str, float]:
        values = torch.stack([v.detach().float().reshape(()) for v in terms.values()]).tolist()
        return dict(zip(terms, values, strict=True))

    def on_train_epoch_end(self, train_outputs: list[Mapping[str, float]]) -> None:
        self.objective.after_epoch()
        seconds = max(time() - self._train_seconds, 1e-9)
        steps = len(train_outputs)
        images = self.budget.samples * sum(view.count for view in self.views.values())
        means = self._average(self.epoch_terms)
        self._epoch_log: dict[str, float | None] = {
            "train_loss": means.pop("loss", None),
            **means,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "images_per_second": images * steps / seconds,
            "seconds_per_step": seconds / max(1, steps),
            "seconds_waited": self.dataloader_train.seconds_waited - self._waited,
            "skipped_steps": float(self.skipped_steps),
            **self.weight_change(self.objective.network),
        }
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch

    def validation_step(self, batch: dict[str, Any]) -> Mapping[str, float]:
        with suppress(NoSignalError), torch.no_grad(), self.autocast():
            return self._to_floats(self.objective(self.prepare(batch)))
        return {}

    def on_validation_epoch_end(self, val_outputs: list[Mapping[str, float]]) -> None:
        self.val_terms = means = self._average(val_outputs)
        self._epoch_log["val_loss"] = means.get("loss")
        for term in self.objective.validated:
            if term in means:
                self._epoch_log[f"val_{term}"] = means[term]

    def _average(self, outputs: list[Mapping[str, float]]) -> dict[str, float]:
        """Mean of each term over steps and ranks; skipped steps do not count."""
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, outputs)
            outputs = [terms for part in gathered for terms in part]
        kept = [terms for terms in outputs if terms]
        return {key: float(np.mean([t[key] for t in kept])) for key in (kept[0] if kept else {})}

    def on_epoch_start(self) -> None:
        self._epoch_begin = time()

    def on_epoch_end(self) -> None:
        self.epoch_terms = []
        self._epoch_log["epoch_seconds"] = time() - self._epoch_begin
        self.history.log(self.current_epoch, self._epoch_log)
        tell_loggers(self.logger, self._epoch_log, self.current_epoch)
        self.current_epoch += 1
        self._report()
        better, last = self._is_better(), self.current_epoch == self.num_epochs
        if not last:  # that one's are made by `finish`
            self._probe_features()
            self._draw()
        # what was not made before a kill is made again, so the file that a resume takes is the last
        if better:
            self.save_checkpoint(str(Path(self.output_folder) / BEST))
        if not last and self.current_epoch % self.save_every == 0:
            self.save_checkpoint(self.latest_checkpoint)

    def finish(self) -> None:
        """Probe and pictures after the last epoch; a run that is killed in here resumes here."""
        if self.history.last("probe_seconds") is None:
            self._probe_features()
        self._draw()

    def _report(self) -> None:
        """The epoch in the log and in `history.csv`."""
        values, log = self.history.values, self.print_to_log_file
        log(describe_epoch(values, self.num_epochs, self.objective.validated))
        steps, overfits = self.settings.num_iterations_per_epoch, self.objective.best is not None
        for trouble in find_troubles(values, steps, overfits):
            log(f"WARNING: {trouble}")
        self.write_history()

    def write_history(self) -> None:
        """All terms so far; a resumed run's file has no epoch that its weights have not."""
        if self.local_rank == 0:
            self.history.write(self.output_folder)

    def _probe_features(self) -> None:
        """Probe where it is due; only rank 0 does, the others wait. The trained run is saved
        before, so that nothing is lost whatever happens."""
        if not self.probe_settings.is_due(self.current_epoch, self.num_epochs):
            return
        if self.current_epoch == self.num_epochs:
            self.save_checkpoint(self.latest_checkpoint)
        if self.local_rank == 0:
            terms = self.probe.run(self.current_epoch, self.step)
            self.history.add(self.current_epoch - 1, terms)
            tell_loggers(self.logger, terms, self.current_epoch - 1)
            if terms:
                self.print_to_log_file(describe_probe(terms))
            self.write_history()
        if self.is_ddp:
            dist.barrier()

    def find_shortcuts(self) -> dict[str, float]:
        """How the task fares on images that show nothing, where it has right and wrong answers."""
        if not (self.objective.audited and self.probe_settings.probe_shortcut):
            return {}
        count, maker = shortcuts.BATCHES, self.batch_maker
        held_out = make_validation_batches(maker, self.val_cases, count)
        with evaluating(self.objective):
            found = shortcuts.audit(self.validation_step, map(held_out or maker, range(count)))
        if text := shortcuts.warn(found):
            self.print_to_log_file(f"WARNING: {text}")
        return found

    def _is_better(self) -> bool:
        """Whether the smoothed validation loss fell; without a criterion the latest is the best."""
        value = self.history.last("val_loss")
        if self.objective.best is None or value is None:
            return self.current_epoch % self.save_every == 0
        previous = [v for v in self.history.values["val_loss"] if v is not None]
        smooth = previous[0]
        for v in previous[1:]:
            smooth = 0.9 * smooth + 0.1 * v
        if self._best_ema is not None and smooth >= self._best_ema:
            return False
        self._best_ema: float | None = smooth
        return True

    def _draw(self) -> None:
        if self.local_rank != 0:
            return
        folder, last = Path(self.output_folder), self.current_epoch == self.num_epochs
        if last or time() - self._last_plot > SECONDS_BETWEEN_PLOTS:
            self._last_plot = time()
            draw_progress(
                self.history.values, self.objective.panels, folder / "progress.png", self.heading
            )
        if last or self.current_epoch % self.settings.picture_every == 0:
            batch = self.prepare(self.batch_maker(0))
            save_pictures(
                self.objective,
                batch,
                folder / "pictures",
                f"epoch_{self.current_epoch:04d}",
                f"{self.heading}, {self._name_channel()}",
            )

    def _name_channel(self) -> str:
        """The channel that pictures show."""
        names = list(self.dataset_json.get("channel_names", {}).values())
        name = f"channel {names[0]}" if names else "first channel"
        return name if len(names) < 2 else f"{name} (1 of {len(names)})"
