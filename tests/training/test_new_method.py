"""A method is an objective, a test, a YAML, a line in a registry: no file of `training/` changes.

The method of this file tells the quarter of its image's intensities that each voxel belongs to. The
quarters are dense targets of its own, which only a maker of its own can make.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nnssl.cluster_maps import DENSE_TARGETS, Maker, TargetRun
from nnssl.cluster_maps.maps import save_map
from nnssl.modules import unet
from nnssl.nnunet.images import image_file, open_image
from nnssl.objectives import OBJECTIVES, Batch, Context, DenseTargets, Objective
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class
from nnssl.training.progress_picture import find_panels

YAML = """
kind: pretrain
objective: {name: quarters, quarters: 4}
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0, picture_every: 1}
probe: {probe_at_end: false}
"""


class Quarters(Objective):
    """Which quantile of its image's intensities each voxel belongs to."""

    decodes = True
    validated = ("hits",)
    panels: ClassVar[dict[str, tuple[str, ...]]] = {"quarters told": ("hits", "known")}

    def __init__(self, network: nn.Module, context: Context, *, quarters: int = 4) -> None:
        super().__init__(network, context)
        self.dense_targets = (DenseTargets("quantiles", "intensity", quarters),)
        self.head = nn.Conv2d(unet.output_channels(network)[0], quarters, 1)

    @property
    def trained(self) -> unet.Trained:
        return unet.Trained(None, None)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        view = batch["views"]["global_0"]
        target = view.dense_targets["quantiles"]
        features = unet.decode(self.network, unet.encode(self.network, view.image))[-1]
        logits = self.head(features).float()
        known = target >= 0
        hits = (logits.argmax(1) == target)[known].float().mean()
        loss = cross_entropy(logits, target, ignore_index=-1)
        return {"loss": loss, "hits": hits, "known": known.float().mean()}


def make_quantiles(wanted: DenseTargets, run: TargetRun, log: Callable[[str], None]) -> None:
    folder = run.folders.dense_target(wanted.name)
    for image in run.images:
        file = image_file(image.folder or run.folders.preprocessed, image.identifier)
        voxels = np.asarray(open_image(file)[0])
        inner = np.quantile(voxels, np.linspace(0, 1, wanted.classes + 1)[1:-1])
        save_map(np.digitize(voxels, inner).astype(np.int16), image.map(folder))
    log(f"Quantiles of {len(run.images)} images are made")


def check_quantiles(wanted: DenseTargets, run: TargetRun) -> None:
    folder = run.folders.dense_target(wanted.name)
    if not all(image.is_mapped(folder) for image in run.images):
        raise ValueError(f"quantiles: {folder} lacks images")


def test_a_method_with_dense_targets_of_its_own_trains(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, list[str]]] = []
    monkeypatch.setitem(OBJECTIVES, "quarters", Quarters)
    monkeypatch.setitem(DENSE_TARGETS, "intensity", Maker(make_quantiles, check_quantiles))
    trainer_yaml("nnSSLQuarters", YAML)
    trainer_class.cache_clear()
    trainer = tiny_dataset.trainer(trainer_class("nnSSLQuarters"))
    trainer.initialize()
    with pytest.raises(ValueError, match="lacks images"):
        trainer.check_dense_targets()
    monkeypatch.setattr(
        pretraining_loop, "draw_progress", lambda *what: drawn.append(find_panels(*what[:2]))
    )
    trainer.run_training()

    assert trainer.step == 2
    history = trainer.history.values
    assert 0 < history["hits"][0] < 1
    assert 0 < history["val_hits"][0] < 1
    assert "val_known" not in history
    assert drawn[-1]["quarters told"] == ["hits", "val_hits", "known"]
    folder = tiny_dataset.preprocessed / "nnssl" / "nnUNetPlans_2d" / "quantiles" / "fold_0"
    assert len(list(folder.glob("*.b2nd"))) == len(trainer.train_cases) + len(trainer.val_cases)
    batch = trainer.batch_maker(0)
    image, target = batch["image"][:, 0], batch["dense_targets"]["quantiles"]
    assert set(torch.unique(target).tolist()) <= {-1, 0, 1, 2, 3}
    first, last = (torch.stack([x[t == k].mean() for x, t in zip(image, target, strict=True)])
                   for k in (0, 3))  # fmt: skip
    assert (last > first)[first.isfinite() & last.isfinite()].all()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
