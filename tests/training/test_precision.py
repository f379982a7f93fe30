"""`training.precision`: what the network computes in, and that every family still trains in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.training.factory import trainer_class
from nnssl.training.finetuner import nnSSLFinetuner
from nnssl.training.semi_supervised import nnSSLSemiSupervised
from nnssl.training.settings import FinetuningSettings, PretrainingSettings

SHORT = """
extends: %s
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0, precision: %s}
probe: {probe_at_end: false}
"""


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", None),
        ("auto", "cuda", "float16"),
        ("float32", "cuda", None),
        ("bfloat16", "cpu", "bfloat16"),
        ("bfloat16", "cuda", "bfloat16"),
    ],
)
def test_type_of_a_precision(precision: Any, device: str, expected: str | None) -> None:
    assert PretrainingSettings(precision=precision).autocast_dtype(device) == expected
    if precision != "float32":
        assert FinetuningSettings(precision=precision).autocast_dtype(device) == expected


@pytest.mark.parametrize("parent", ["nnSSLContrastiveTrainer", "nnSSLMAETrainer"])
def test_bfloat16_reaches_the_convolutions_and_not_the_weights(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], parent: str
) -> None:
    seen: set[torch.dtype] = set()
    for precision in ("float32", "bfloat16"):  # weight change and pre-flight look in float32 too
        trainer_yaml(f"nnSSLIn{precision}", SHORT % (parent, precision))
        trainer = tiny_dataset.trainer(trainer_class(f"nnSSLIn{precision}"))
        trainer.initialize()
        convolution = next(
            m for m in trainer.objective.network.modules() if isinstance(m, torch.nn.Conv2d)
        )
        convolution.register_forward_hook(lambda *inout: seen.add(inout[2].dtype))
        trainer.run_training()
        assert (torch.bfloat16 in seen) == (precision == "bfloat16")
        assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
        assert trainer.skipped_steps == 0
        seen.clear()


def test_shallow_volumes_are_computed_in_float32_on_the_cpu(tiny_dataset: Any) -> None:
    """Their bfloat16 gradients are wrong there (`nnssl.modules.cpu_bfloat16`)."""
    kind = trainer_class("nnSSLMAETrainer")
    trainer = tiny_dataset.trainer(kind, configuration="3d_fullres")
    trainer.initialize()
    found = [m for m in trainer.objective.network.modules() if isinstance(m, torch.nn.Conv3d)]
    wide = [m for m in found if m.kernel_size[0] > 1]
    assert wide
    with torch.autocast("cpu", torch.bfloat16):
        for convolution in wide:
            for depth, dtype in ((2, torch.float32), (4, torch.bfloat16)):
                image = torch.rand(1, convolution.in_channels, depth, 4, 4)
                assert convolution(image).dtype == dtype


TUNED = """
extends: %s
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           precision: %s}
labels: {patients: 1}
"""
SEMI = """semi_supervised: {supervised_share: 0.4, consistency: %s}
"""


def watch(network: torch.nn.Module, seen: set[torch.dtype]) -> None:
    """Notes in which types the first convolution of a network computes from now on."""
    convolution = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda *inout: seen.add(inout[2].dtype))


def build_tuned(
    tiny_dataset: Any,
    trainer_yaml: Callable[[str, str], str],
    text: str,
    configuration: str = "2d",
) -> Any:
    trainer_yaml("nnSSLTestTrainer", text)
    parent = nnSSLSemiSupervised if "Semi" in text else nnSSLFinetuner
    kind = type("nnSSLTestTrainer", (parent,), {"config_name": "nnSSLTestTrainer"})
    trainer = tiny_dataset.trainer(kind, configuration=configuration)
    trainer.on_train_start()
    return trainer


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_fine_tuning_computes_in_it_but_for_loss_weights_and_final_validation(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], precision: str
) -> None:
    text = TUNED % ("nnSSLScratchTrainer", precision)
    trainer = build_tuned(tiny_dataset, trainer_yaml, text)
    training, validating, judged = set(), set(), set()
    expected = torch.bfloat16 if precision == "bfloat16" else torch.float32
    trainer.loss.stock.register_forward_pre_hook(
        lambda _, given: judged.update(output.dtype for output in given[0])
    )
    watch(trainer.network, training)
    trainer.run_training()
    assert training == {expected}  # of training and of the quick validation
    assert judged == {torch.float32}
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    watch(trainer.network, validating)
    trainer.perform_actual_validation()
    assert validating == {torch.float32}


def test_the_quick_validation_computes_in_it(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]
) -> None:
    text = TUNED % ("nnSSLScratchTrainer", "bfloat16")
    trainer, seen = build_tuned(tiny_dataset, trainer_yaml, text), set()
    watch(trainer.network, seen)
    trainer.validation_step(next(trainer.dataloader_val))
    assert seen == {torch.bfloat16}
    trainer.close()


@pytest.mark.parametrize("consistency", ["fixmatch", "cross"])
def test_teacher_and_partner_compute_in_it(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], consistency: str
) -> None:
    text = TUNED % ("nnSSLSemiSupervisedScratchTrainer", "bfloat16") + SEMI % consistency
    trainer, seen = build_tuned(tiny_dataset, trainer_yaml, text), set()
    other = trainer.partner.planned_network if trainer.partner else trainer.average.module
    watch(other, seen)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    for _ in range(2):  # the second is the first with images without labels
        trainer.train_step(next(trainer.dataloader_train))
    trainer.close()
    assert seen == {torch.bfloat16}
    assert trainer.said.probabilities.dtype == torch.float32


@pytest.mark.parametrize("parent", ["nnSSLScratchTrainer", "nnSSLSemiSupervisedScratchTrainer"])
def test_shallow_volumes_are_fine_tuned_in_float32_on_the_cpu(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], parent: str
) -> None:
    text = TUNED % (parent, "bfloat16") + (SEMI % "cross" if "Semi" in parent else "")
    trainer = build_tuned(tiny_dataset, trainer_yaml, text, "3d_fullres")
    networks = [trainer.network]
    if "Semi" in parent:
        networks.append(trainer.partner.planned_network)
    with torch.autocast("cpu", torch.bfloat16):
        for network in networks:
            found = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
            wide = next(m for m in found if m.kernel_size[0] > 1)
            for depth, dtype in ((2, torch.float32), (4, torch.bfloat16)):
                assert wide(torch.rand(1, wide.in_channels, depth, 4, 4)).dtype == dtype
    trainer.close()
