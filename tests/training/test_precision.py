"""`training.precision`: what the network computes in, and that every family still trains in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnssl.training.factory import trainer_class
from nnssl.training.settings import PretrainingSettings

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
