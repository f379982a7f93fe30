"""``nnssl_plan_small``: a small copy of a planned configuration, for quickstart and CPU studies.

Run it after planning (``nnUNetv2_plan_experiment``); the original plans file is not touched.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from nnssl.cli.command import command, dataset_id, warn
from nnssl.nnunet.paths import plans_file
from nnssl.nnunet.plans import read_plans, write_new_plans
from nnssl.nnunet.small_plans import shrink_plans


def _add_options(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Defaults: 2D: spacing 2.5, patch 80, batch 8, features 16 32 64 128; 3D: spacing 0, "
        "patch 32, batch 4, features 8 16 32. Several numbers: per axis, array order (z y x)."
    )
    add = parser.add_argument
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="nnU-Net dataset, id or name")
    add("-c", required=True, dest="configuration", help="configuration, e.g. 2d or 3d_fullres")
    add("-p", default="nnUNetPlans", dest="plans", help="plans to shrink (%(default)s)")
    add("--name", default="nnUNetPlansSmall", help="name of the small plans (%(default)s)")
    add("--spacing", type=float, nargs="+", metavar="MM", help="0 keeps the planned spacing")
    add("--patch", type=int, nargs="+", metavar="N", help="patch size in voxels")
    add("--batch", type=int, metavar="B", help="batch size")
    add("--features", type=int, nargs="+", metavar="F", help="channels of each stage")


@command("nnssl_plan_small", __doc__, _add_options, example="-d 27 -c 2d --batch 8")
def main(options: Namespace) -> None:
    path = plans_file(options.dataset_id, options.plans)
    sizes = {key: getattr(options, key) for key in ("spacing", "patch", "batch", "features")}
    plans, warnings = shrink_plans(read_plans(path), options.configuration, options.name, **sizes)
    written = write_new_plans(path.parent, plans)
    warn(warnings)
    small = plans["configurations"][options.configuration]
    print(
        f"{written}: {options.configuration}, "
        f"patch {small['patch_size']}, spacing {small['spacing']}, batch {small['batch_size']}, "
        f"strides {small['architecture']['arch_kwargs']['strides']}"
    )
    print(
        f"next: nnUNetv2_preprocess -d {options.dataset_id} -plans_name {options.name} "
        f"-c {options.configuration}\nthen: train with -p {options.name}"
    )
