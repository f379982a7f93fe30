"""``nnssl_plan_like``: plans for a target dataset that keep the architecture of a checkpoint.

Run it after planning the target (``nnUNetv2_plan_experiment``). The new plans have the target's own
spacing, normalisation and patch (divisible by the checkpoint's strides, within the planned memory),
so its preprocessed cases differ from those of the checkpoint; no other plans are touched.
"""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnssl.cli.command import command, dataset_id, warn
from nnssl.nnunet.paths import WEIGHTS, plans_file
from nnssl.nnunet.plans import KEEPABLE, read_description, read_plans, write_new_plans


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint of nnSSL or nnU-Net (checkpoint_final.pth)")
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="target dataset, id or name")
    add("-c", dest="configuration", help="configuration of the target (the checkpoint's)")
    add("-p", default="nnUNetPlans", dest="plans", help="the target's plans (%(default)s)")
    add("--name", help="name of the new plans (nnUNetPlansLike and the checkpoint's dataset)")
    text = "what is the checkpoint's too, rather than the target's own"
    add("--keep", nargs="+", choices=KEEPABLE, default=[], help=text)


@command("nnssl_plan_like", __doc__, _add_options, example="checkpoint_final.pth -d 4")
def main(options: Namespace) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnssl.nnunet.checkpoint import speaking_of
    from nnssl.nnunet.plan_like import plan_like, read_source
    from nnssl.nnunet.planned_network import build_planned_network
    from nnssl.nnunet.runs import WeightSource
    from nnssl.nnunet.weight_files import read_weights
    from nnssl.training.finetuning_weights import compare_inputs, fit_checkpoint

    path = plans_file(options.dataset_id, options.plans)
    checkpoint = read_weights(options.checkpoint)
    with speaking_of(options.checkpoint):
        source = read_source(checkpoint)
    configuration = options.configuration or source.name
    origin = re.sub(r"^Dataset[0-9]{3}_", "", source.dataset)
    name = options.name or f"nnUNetPlansLike{origin}"
    target, dataset = read_plans(path), read_description(path.parent)
    with speaking_of(options.checkpoint):
        plans, remarks = plan_like(target, dataset, source, configuration, name, options.keep)
        network = build_planned_network(plans, configuration, dataset)
        loads = fit_checkpoint(network, checkpoint, WeightSource())
        loads.require(1.0)
        remarks += compare_inputs(checkpoint, PlansManager(plans), configuration)
    written = write_new_plans(path.parent, plans)
    warn(remarks, "note")
    new = plans["configurations"][configuration]
    print(
        f"{written}: {configuration}, architecture of {source.dataset} ({source.name}), "
        f"patch {new['patch_size']}, spacing {new['spacing']}, batch {new['batch_size']}\n"
        f"of the pre-trained encoder {loads.share:.0%} load ({len(loads.loaded)} tensors)"
    )
    number, weights = options.dataset_id, shlex.quote(str(options.checkpoint.absolute()))
    print(
        f"next: nnUNetv2_preprocess -d {number} -plans_name {name} -c {configuration}\n"
        f"then: {WEIGHTS}={weights} "
        f"nnUNetv2_train {number} {configuration} 0 -tr nnSSLFinetuneTrainer -p {name}"
    )
