"""What can be wrong on a GPU and right on a CPU: devices, strides, autocast, waits, groups."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.config import find_configs, read_config
from nnssl.losses.clustering import (
    linear_cross_entropy,
    map_cross_entropy,
    sinkhorn,
    swapped_prediction,
)
from nnssl.losses.contrastive import contrastive_loss
from nnssl.modules.memory import MemoryBank, MomentumCopy
from nnssl.training.factory import trainer_class
from tests.training.recorded_losses import draw_nothing

pytestmark = pytest.mark.gpu

LENGTH = "num_epochs=2 num_iterations_per_epoch=3 num_val_iterations_per_epoch=1"
CUDA = torch.device("cuda")
MOST_WAITS = 12  # of a step: is loss and gradient finite, the scale, the terms, few of a loss


def list_methods() -> list[str]:
    """Pre-trainers that are no variant of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnssl_configs", "")
        found = {name: read_config(name) for name in find_configs()}
    return [n for n, c in found.items() if c.kind == "pretrain" and len(c.layers) == 1]


def build(dataset: Any, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str) -> Any:
    """A trainer on the GPU that has begun its run."""
    draw_nothing(monkeypatch)
    monkeypatch.setenv(
        "nnssl_overrides", f"{LENGTH} probe_at_end=false initial_weights=null encoder_lr_scale=1"
    )
    trainer = dataset.trainer(trainer_class(name), configuration)
    trainer.device, trainer.grad_scaler = CUDA, torch.amp.GradScaler("cuda")
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    return trainer


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("name", list_methods())
def test_a_step_leaves_nothing_on_the_cpu_and_hardly_waits(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str
) -> None:
    trainer = build(tiny_dataset, monkeypatch, name, configuration)
    batches = [next(trainer.dataloader_train) for _ in range(3)]
    for batch in batches[:2]:
        trainer.train_step(batch)
    prepared = trainer.prepare(batches[2])
    assert prepared["image"].is_cuda
    for view in prepared["views"].values():
        assert view.image.is_cuda
        assert view.matrix.is_cuda
        assert all(target.is_cuda for target in view.dense_targets.values())
    assert all(tensor.is_cuda for tensor in trainer.network.state_dict().values())
    waits = count_waits(lambda: trainer.train_step(batches[2]))
    assert sum(waits.values()) <= MOST_WAITS, waits
    trainer.dataloader_train.close()


def test_fine_tuning_computes_in_bfloat16_where_that_is_asked(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net's own autocast keeps the type of the outer one."""
    monkeypatch.setenv("nnssl_overrides", f"{LENGTH} training.precision=bfloat16")
    trainer = tiny_dataset.trainer(trainer_class("nnSSLScratchTrainer"), "2d")
    trainer.device, trainer.grad_scaler = CUDA, torch.amp.GradScaler("cuda")
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    seen: set[torch.dtype] = set()
    convolution = next(m for m in trainer.network.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda *inout: seen.add(inout[2].dtype))
    trainer.train_step(next(trainer.dataloader_train))
    trainer.validation_step(next(trainer.dataloader_val))
    assert seen == {torch.bfloat16}
    trainer.close()


def count_waits(call: Any) -> Counter[str]:
    """Where the host waits for the device: file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [w for w in caught if "synchroniz" in str(w.message)]
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in told)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_strides_of_an_image_change_no_view(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    trainer = build(tiny_dataset, monkeypatch, "nnSSLModelsGenesisTrainer", configuration)
    batch = next(trainer.dataloader_train)
    wanted = trainer.prepare(batch)["views"]
    layout = torch.channels_last if configuration == "2d" else torch.channels_last_3d
    wide = torch.cat([batch["image"]] * 2, 1)
    for image in (wide[:, :1], batch["image"].to(memory_format=layout)):
        found = trainer.prepare({**batch, "image": image})["views"]
        for name, view in found.items():
            torch.testing.assert_close(view.image, wanted[name].image)
    trainer.dataloader_train.close()


def test_losses_are_those_of_float32_under_autocast() -> None:
    """Sums over exponentials overflow in float16."""
    torch.manual_seed(0)
    scores = torch.randn(512, 30, device=CUDA)
    codes = sinkhorn(scores)
    embeddings = nn.functional.normalize(torch.randn(64, 16, device=CUDA), dim=1)
    instance = torch.arange(64, device=CUDA) // 2
    positive = (instance[:, None] == instance).float().fill_diagonal_(0)
    negative = instance[:, None] != instance
    logits, target = scores.reshape(2, 30, 16, 16) * 20, torch.randint(0, 30, (2, 16, 16))

    def compute() -> list[torch.Tensor]:
        return [
            sinkhorn(scores),
            swapped_prediction(scores * 10, codes),
            contrastive_loss(embeddings, positive, negative, 0.1),
            map_cross_entropy(logits, target.to(CUDA), balanced=True),
        ]

    plain = compute()
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype=dtype):
            found = compute()
        for value, wanted in zip(found, plain, strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, wanted, rtol=2e-2, atol=1e-3)


def test_losses_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(300, 20, generator=generator)
    torch.testing.assert_close(sinkhorn(scores.cuda()).cpu(), sinkhorn(scores))
    target = torch.randint(-1, 20, (3, 10, 10), generator=generator)
    logits = scores.reshape(3, 20, 10, 10)
    for balanced in (False, True):
        torch.testing.assert_close(
            map_cross_entropy(logits.cuda(), target.cuda(), balanced).cpu(),
            map_cross_entropy(logits, target, balanced),
        )
    gradients = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device).requires_grad_() for x in (logits, torch.eye(20), torch.zeros(20))]
        linear_cross_entropy(*inputs, target.to(device)).backward()
        gradients.append([x.grad.cpu() for x in inputs if x.grad is not None])
    torch.testing.assert_close(*gradients)


def test_memories_stay_on_the_device() -> None:
    online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).cuda()
    copied = MomentumCopy(online)
    before = copy.deepcopy(online.state_dict())
    with torch.no_grad():
        online[0].weight.add_(1)
    assert not count_waits(lambda: copied.update(0.9))
    averaged = dict(copied.module.named_parameters())["0.weight"]
    torch.testing.assert_close(averaged, before["0.weight"] + 0.1)
    with copied.in_place():
        torch.testing.assert_close(online[0].weight, before["0.weight"] + 0.1)
    bank = MemoryBank(6, 4).cuda()
    bank.enqueue(torch.ones(4, 4, device=CUDA))
    bank.enqueue(torch.full((4, 4), 2.0, device=CUDA))
    assert bank.read().is_cuda
    assert bank.read().sum() == 4 * (2 + 8)


def test_batches_of_workers_lie_in_pinned_memory(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = build(tiny_dataset, monkeypatch, "nnSSLMAETrainer", "2d")
    batch = next(trainer.dataloader_train)
    assert batch["image"].is_pinned()
    trainer.train_step(batch)
    trainer.dataloader_train.close()


def test_a_group_of_one_gpu_normalises_over_its_ranks(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SyncBatchNorm runs on CUDA only."""
    group = f"file://{tmp_path}/group"
    torch.distributed.init_process_group("nccl", init_method=group, rank=0, world_size=1)
    try:
        trainer = build(tiny_dataset, monkeypatch, "nnSSLContrastiveTrainer", "2d")
        assert trainer.is_ddp
        kinds = [type(module) for module in trainer.network.modules()]
        assert nn.SyncBatchNorm in kinds
        terms = trainer.train_step(next(trainer.dataloader_train))
        assert terms == {} or torch.tensor(terms["loss"]).isfinite()
        trainer.dataloader_train.close()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_semi_supervised_step_learns(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, configuration: str
) -> None:
    draw_nothing(monkeypatch)
    monkeypatch.setenv("nnssl_overrides", f"{LENGTH} labels.patients=1")
    kind = trainer_class("nnSSLSemiSupervisedScratchTrainer")
    trainer = tiny_dataset.trainer(kind, configuration)
    trainer.device, trainer.grad_scaler = CUDA, torch.amp.GradScaler("cuda")
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    weights = torch.load(final, "cpu", weights_only=False)["network_weights"]
    assert all(value.isfinite().all() for value in weights.values())
