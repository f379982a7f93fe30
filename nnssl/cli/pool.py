"""``nnssl_pool``: several nnU-Net datasets become one for pre-training; images are referenced.

It also preprocesses the pool, case by case with the settings of each modality; training is
``nnUNetv2_train ID CONFIGURATION FOLD -p PLANS -tr nnSSL...Trainer``.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from typing import TYPE_CHECKING

from nnssl.cli.command import WORKERS, command, dataset_id, warn
from nnssl.nnunet.paths import RESULTS, Roots, find_dataset_names, find_root

if TYPE_CHECKING:
    from nnssl.data.pool.build import PoolDraft, PoolRequest

POLICIES = ("target", "own", "isotropic")


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("pool_id", type=dataset_id, metavar="ID", help="dataset of the pool, id or name")
    add(
        "--from",
        type=dataset_id,
        nargs="+",
        dest="members",
        metavar="D",
        help="datasets, ids or names",
    )
    add_plans = parser.add_mutually_exclusive_group().add_argument
    text = "architecture, patch and batch of this dataset"
    add_plans("--plans-of", type=dataset_id, metavar="D", help=text)
    text = "nnU-Net's planner plans for the mix (default)"
    add_plans("--plan", choices=["universal"], help=text)
    add("-p", dest="plans", metavar="PLANS", help="name of the plans (nnUNetPlans)")
    add("-c", dest="configuration", default="2d", help="configuration (%(default)s)")
    add(
        "--planner", default="ExperimentPlanner", help="nnU-Net's planner for the mix (%(default)s)"
    )
    text = "target: that of the plans; own: each dataset its median; isotropic: one number"
    add("--spacing", choices=POLICIES, default="target", help=text)
    add(
        "--spacing-of", type=dataset_id, metavar="D", help="target: planned spacing of this dataset"
    )
    text = "CT window in HU (that of --plans-of where it is CT, else -1000 1000)"
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
    add("--name", help="name of the dataset (Pool)")
    add("--check", action="store_true", help="check a pool and the fine-tuning runs from it")
    add("--dry-run", action="store_true", help="check everything, write nothing")
    add("-np", type=int, default=WORKERS, help="processes (%(default)s)")


@command("nnssl_pool", __doc__, _add_options, example="900 --from 27 4 --plans-of 27", resumes=True)
def main(options: Namespace) -> None:
    roots = Roots.from_environment()
    _check(roots, options.pool_id) if options.check else _make(options, roots)


def _make(options: Namespace, roots: Roots) -> None:
    from nnssl.data.pool.build import build, draft
    from nnssl.leakage.pool_check import describe_overlaps

    if not options.members:
        raise ValueError("needs --from, for example: nnssl_pool 900 --from 27 4 --plans-of 27")
    made = draft(_request(options, roots), roots)
    _show(made)
    warn(describe_overlaps(made.pool))
    if options.dry_run:
        warn(made.pool.describe_moved())
        print(f"{len(made.pool.cases)} cases; nothing was written (--dry-run)")
        return
    plans, pool = build(made, options.np)
    warn(pool.describe_moved())
    request = made.request
    configuration = plans["configurations"][request.configuration]
    print(
        f"{made.target.preprocessed}: {len(made.pool.cases)} cases, {len(made.pool.splits)} folds; "
        f"{request.plans} {request.configuration}: patch {configuration['patch_size']}, spacing "
        f"{[round(mm, 3) for mm in configuration['spacing']]}"
    )
    print(
        f"next: nnUNetv2_train {request.number} {request.configuration} 0 -p {request.plans} "
        "-tr nnSSLContrastiveTrainer\nthen, on fold 0 of a member: "
        "nnssl_pretrained_weights=.../fold_0/checkpoint_final.pth nnUNetv2_train ... "
        "-tr nnSSLFinetuneTrainer"
    )


def _request(options: Namespace, roots: Roots) -> PoolRequest:
    from nnssl.data.pool.build import PoolRequest

    known = find_dataset_names(options.pool_id, roots.raw)
    name = known[0].split("_", 1)[1] if len(known) == 1 else "Pool"
    default = "nnUNetPlans" if options.plans_of is not None else "nnSSLUniversalPlans"
    return PoolRequest(
        number=options.pool_id,
        name=options.name or name,
        members=tuple(options.members),
        plans=options.plans or default,
        configuration=options.configuration,
        plans_of=options.plans_of,
        spacing=options.spacing,
        spacing_of=options.spacing_of,
        window=None if options.window is None else tuple(options.window),
        planner=options.planner,
    )


def _show(made: PoolDraft) -> None:
    """One line per member and channel."""
    configuration = made.request.configuration
    source = made.source
    planned = made.spacing or (source and source["configurations"][configuration]["spacing"])
    settings = made.choose_settings(planned or [1.0] * (2 if configuration == "2d" else 3))
    counts = Counter((case.member.folder, case.channel) for case in made.pool.cases)
    shown = {(case.member.folder, case.channel): case for case in made.pool.cases}
    for key, case in sorted(shown.items()):
        own = settings[case.identifier]
        mm = "x".join(f"{value:.2f}" for value in own.spacing)
        known = planned or made.request.spacing == "own"
        spacing = f"{mm} mm" if known else "spacing as planned"
        name = case.member.channels[case.channel]
        print(f"{key[0]:<28}{name:<12}{counts[key]:>6} cases  {own.normalization:<20}{spacing}")


def _check(roots: Roots, number: int) -> None:
    from nnssl.leakage.pool_check import check_pool, check_runs

    problems = check_pool(roots, number)
    for problem in problems:
        print(problem)
    results = find_root(RESULTS)
    runs = list(check_runs(results, roots, number)) if results else []
    for text, _ in runs:
        print(text)
    bad = len(problems) + sum(honest is False for _, honest in runs)
    if bad:
        sys.exit(f"nnssl_pool: {bad} problems")
    print(f"{roots.dataset(number)}: nothing is wrong")
