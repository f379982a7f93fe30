"""The weights that a pre-training run starts from: found or named, loaded, told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nnssl.config import TRAINER_PREFIX
from nnssl.finetuning.report import Transfer
from nnssl.finetuning.weights import Adaptation, fit, load
from nnssl.modules import unet
from nnssl.modules.memory import MomentumCopy
from nnssl.modules.unet import Trained
from nnssl.nnunet.paths import FINAL
from nnssl.nnunet.runs import RunLocation, find_finished_run
from nnssl.nnunet.weight_files import as_source, find_weight_file
from nnssl.objectives import Objective
from nnssl.training.identity import describe_weights

LEAST_SHARE = 0.5  # of the wanted parameters
OTHERWISE = f"Or name a file: training: {{initial_weights: /path/to/{FINAL}}}."


def names_trainer(initial: str) -> bool:
    """Whether `training.initial_weights` is the name of a trainer, and not a file."""
    return initial.startswith(TRAINER_PREFIX) and initial.isidentifier()


def find_initial(initial: str | None, place: RunLocation) -> str | None:
    """The file that `training.initial_weights` means; None: random weights.

    Raises:
        FileNotFoundError: a trainer is named, and it has no finished run here.
    """
    if initial is None:
        return None
    if not names_trainer(initial):
        return str(find_weight_file(initial))
    return str(find_finished_run(place, initial, OTHERWISE))


def describe_named(initial: str | None) -> Mapping[str, str]:
    """What `training.initial_weights` names today; empty where a trainer leaves it to a search."""
    if initial is None:
        return describe_weights(None)
    return {} if names_trainer(initial) else describe_weights(find_weight_file(initial))


def leave_out_encoder(trained: Trained, encoder_lr_scale: float) -> Trained:
    """The parts that learn when the encoder's rate is scaled so.

    Raises:
        ValueError: nothing would learn.
    """
    if encoder_lr_scale > 0:
        return trained
    if trained.decoder_levels == 0:
        raise ValueError(
            "training.encoder_lr_scale: found 0, but this objective trains the encoder only; "
            "allowed: a number above 0"
        )
    return replace(trained, encoder_stages=0)


def refuse_random_encoder(trained: Trained, initial: str | None) -> None:
    """Raises ValueError where a frozen encoder would be a random one."""
    if trained.encoder_stages == 0 and initial is None:
        raise ValueError(
            "training.initial_weights: found null, but the encoder is frozen (training.encoder_lr_"
            "scale: 0) and would stay random; allowed: a checkpoint, or the name of a pre-training "
            "trainer that has finished on this fold."
        )


def load_initial(
    objective: Objective,
    trained: Trained,
    checkpoint: Mapping[str, Any],
    channels: Sequence[str] = (),
) -> Transfer:
    """Start from the weights of another run: the parts of the U-Net that this one uses.

    A frozen encoder is used, all of it. Momentum copies start from the loaded weights too.

    Args:
        objective: with the network to fill.
        trained: the parts of it that learn.
        checkpoint: weights that were read.
        channels: names of the network's input channels.

    Raises:
        ValueError: less than half of them fits these plans, or a frozen encoder is not filled.
    """
    network = objective.network
    used = replace(trained, encoder_stages=trained.encoder_stages or None)
    asked = unet.trained_keys(network, used)
    transfer = fit(as_source(checkpoint), network, asked, Adaptation(channels))
    transfer.require(LEAST_SHARE)
    if trained.encoder_stages == 0 and transfer.share_of_encoder < 1:
        raise ValueError(
            "The encoder is frozen (training.encoder_lr_scale: 0), and these weights do not fill "
            f"all of it, so that a part would stay random:\n{transfer.table()}"
        )
    load(network, transfer)
    for module in objective.modules():
        if isinstance(module, MomentumCopy):
            module.update(0.0)
    return transfer
