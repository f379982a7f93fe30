"""``nnssl_preprocess_unlabelled``: images without labels for pre-training beside a dataset.

nnU-Net's own preprocessing by the plans of the dataset; stock trainers never see these images,
pre-training trainers of nnSSL take them in addition to the fold's training cases
(``sampling.unlabelled``). 4D files are cines and become one image per frame.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl.cli.command import WORKERS, command, dataset_id
from nnssl.nnunet.paths import own_folder, plans_file
from nnssl.nnunet.plans import read_description, read_plans

if TYPE_CHECKING:
    from nnssl.data.unlabelled.job import PreprocessingPlan


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("-d", type=dataset_id, required=True, dest="dataset_id", help="nnU-Net dataset, id or name")
    add("-c", required=True, dest="configuration", help="configuration, for example 2d")
    add("-p", default="nnUNetPlans", dest="plans", help="plans (%(default)s)")
    add("-i", type=Path, dest="source", metavar="FOLDER", help="images, at any depth")
    add("--name", help="name of these images (the folder's)")
    add(
        "--patient",
        metavar="REGEX",
        help=r"finds the patient's name in paths below FOLDER: '(patient\d+)'. Write names as the "
        "dataset does: its validation and test patients are left out of pre-training. Without it "
        "the file's stem is the patient; images of unknown patients are compared by content.",
    )
    add("--files", metavar="REGEX", help="only files whose path below FOLDER matches: '_4d'")
    add("--part", default="1/1", metavar="K/N", help="share of a cluster job, 1/N to N/N")
    add("-np", type=int, default=WORKERS, dest="workers", help="processes (%(default)s)")
    add("--list", action="store_true", help="show what is there")
    add("--remove", metavar="NAME", help="delete these images (not their sources)")


@command(
    "nnssl_preprocess_unlabelled",
    __doc__,
    _add_options,
    example=r"-d 27 -c 2d -i /data/cines --patient '(patient\d+)'",
    resumes=True,
)
def main(options: Namespace) -> None:
    from nnssl.data.unlabelled.job import PreprocessingPlan
    from nnssl.data.unlabelled.preprocess import remove_collection

    file = plans_file(options.dataset_id, options.plans)
    plans = read_plans(file, options.configuration)
    plan = PreprocessingPlan(plans, options.configuration, read_description(file.parent))
    own = own_folder(file.parent / plan.data_identifier)
    if options.remove:
        print(f"{remove_collection(own, options.remove)} is deleted")
    elif options.list:
        _list(own, plan)
    else:
        _preprocess(options, file.parent, plan)


def _list(own: Path, plan: PreprocessingPlan) -> None:
    from nnssl.data.unlabelled.records import find_collections, read_images, read_manifest

    found = find_collections(own)
    if not found:
        print(f"no images without labels in {own}")
    for name, folder in found.items():
        images, manifest = read_images(folder), read_manifest(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        old = "" if manifest["voxels"] == plan.voxels else "; OTHER PLANS: remove and make anew"
        patients = len({image.patient for image in images})
        print(
            f"{name}: {len(images)} images of {patients} patients, {size / 2**20:.0f} MiB, "
            f"from {manifest['source']}{old}"
        )


def _preprocess(options: Namespace, dataset: Path, plan: PreprocessingPlan) -> None:
    from nnssl.data.unlabelled.preprocess import UnlabelledTask, preprocess_unlabelled
    from nnssl.data.unlabelled.sources import FileChoice
    from nnssl.leakage.test_set import load_test_thumbnails, read_test_set

    if options.source is None:
        raise ValueError("needs -i FOLDER (or --list, or --remove NAME)")
    part = re.fullmatch(r"(\d+)/(\d+)", options.part)
    if not part:
        raise ValueError(f"--part: found {options.part!r}, allowed is K/N, for example 3/10")
    name = options.name or options.source.resolve().name
    choice = FileChoice(plan.endings, options.files, options.patient)
    share = (int(part[1]), int(part[2]))
    task = UnlabelledTask(dataset, options.source, name, plan, choice, share)
    outcome = preprocess_unlabelled(task, options.workers)
    print(
        f"{task.folder}: {outcome.written} images written, {outcome.kept} were there, "
        f"of {outcome.patients} patients"
    )
    if outcome.gone:
        print(
            f"{outcome.gone} images stay although their files are not in {task.source} any more "
            f"(to be rid of them: --remove {task.name}, and the same command again)"
        )
    if options.patient is None and task.part[0] == 1:  # while the raw test images are at hand
        load_test_thumbnails(read_test_set(dataset, plan.file_ending), task.own, plan)
