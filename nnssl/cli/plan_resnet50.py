"""``nnssl_plan_resnet50``: plans of a 2D U-Net with a ResNet-50 as encoder, for ImageNet's weights.

Run it after planning (``nnUNetv2_plan_experiment``); the original plans file is not touched. The
network is timm's ResNet-50 with nnU-Net's decoder and deep supervision. Spacing and normalisation
are the planned ones. By nnU-Net's own measure (the size of all feature maps), patch and batch fill
the memory that the planned network fills, which nnU-Net chose for its memory target: the patch is
the multiple of 32 nearest to the planned one, and the batch as large as then fits.

Models of such plans train and predict only where nnssl is installed.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from nnssl.cli.command import command, dataset_id, warn
from nnssl.nnunet.paths import plans_file

CONFIGURATION = "2d"
FEATURES, BLOCKS = (32, 64, 256, 512, 1024, 2048), (1, 1, 3, 4, 6, 3)


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="nnU-Net dataset, id or name")
    add("-p", default="nnUNetPlans", dest="plans", help="plans to start from (%(default)s)")
    add("--name", default="nnUNetPlansResNet50", help="name of the new plans (%(default)s)")


@command("nnssl_plan_resnet50", __doc__, _add_options, example="-d 27")
def main(options: Namespace) -> None:
    from nnssl.modules.resnet_unet import STRIDES
    from nnssl.nnunet.plan_like import LEAST_BATCH, PlanSource, plan_like
    from nnssl.nnunet.plans import (
        RESNET,
        count_channels,
        find_configuration,
        make_architecture,
        read_description,
        read_plans,
        write_new_plans,
    )

    path = plans_file(options.dataset_id, options.plans)
    planned, dataset = read_plans(path), read_description(path.parent)
    source = PlanSource(
        dataset="ResNet-50",
        name=CONFIGURATION,
        plans={},
        configuration={
            "patch_size": [0, 0],
            "batch_size": LEAST_BATCH,
            "spacing": find_configuration(planned, CONFIGURATION)["spacing"],
            "architecture": make_architecture(RESNET, FEATURES, STRIDES, BLOCKS),
        },
        channels=count_channels(dataset),
    )
    plans, remarks = plan_like(planned, dataset, source, CONFIGURATION, options.name)
    written = write_new_plans(path.parent, plans)
    warn(remarks)
    new = plans["configurations"][CONFIGURATION]
    print(
        f"{written}: {CONFIGURATION}, ResNet-50, patch {new['patch_size']}, "
        f"spacing {new['spacing']}, batch {new['batch_size']}"
    )
    print(
        f"next: nnUNetv2_preprocess -d {options.dataset_id} -plans_name {options.name} "
        f"-c {CONFIGURATION}\nthen: train with -p {options.name}; models of these plans predict "
        "only where nnssl is installed"
    )
