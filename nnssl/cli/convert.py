"""``nnssl_convert``: a native download becomes an nnU-Net dataset."""

from __future__ import annotations

import difflib
import shlex
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl.cli.command import WORKERS, command, dataset_id, warn
from nnssl.config.files import user_folders
from nnssl.nnunet.namesakes import SAY, describe_groups, guess_patients, suggest_rule
from nnssl.nnunet.paths import PREPROCESSED, RAW, root_folder

if TYPE_CHECKING:
    from nnssl.convert.cine import Cine
    from nnssl.convert.spec import DatasetSpec
    from nnssl.convert.tasks import CheckedCase

FOLDER, BIDS, DICOM, DATALIST = "folder", "bids", "dicom", "datalist"
OWN = {  # data of the user's own, and a line to copy
    FOLDER: "nnssl_convert folder /data/usz -d 50 --name USZ "
    "--images T1={case}/vol.nii.gz --label {case}/seg.nii.gz --labels tumour=any",
    BIDS: "nnssl_convert bids /data/stroke -d 51 --name Stroke --images T1=T1w FLAIR=FLAIR "
    "--label derivatives/manual/label-lesion_mask --labels lesion=any",
    DATALIST: "nnssl_convert datalist /data/x -d 53 --name X --images T1,FLAIR=dataset.json "
    "--labels tumour=1",
    DICOM: "nnssl_convert dicom /data/pacs -d 52 --name Lung --series 'CT.*thorax' "
    "--labels tumour='GTV-?1' lungs='lung.*'",
}


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", help="dataset, see --list; or 'folder', 'bids', 'dicom', 'datalist'")
    add("source", nargs="?", type=Path, help="folder of the native download")
    add("-d", type=dataset_id, dest="dataset_id", help="nnU-Net dataset, id or full name")
    text = "also write the time frames without labels, for nnssl_preprocess_unlabelled"
    add("--cine", action="store_true", help=text)
    add("--n4", action="store_true", help="correct the bias field (slow)")
    add("--dry-run", action="store_true", help="check everything, write nothing")
    text = "read no labels; make a foreground mask instead"
    add("--images-only", action="store_true", help=text)
    add("--resample", action="store_true", help="straighten tilted or uneven DICOM series")
    text = "mend skewed axes, and labels that lie on other axes or have no header"
    add("--headers", choices=("exact", "repair"), help=text)
    text = "what values that are not finite become (none: they are refused)"
    add("--nan", type=float, metavar="VALUE", help=text)
    text = "cases or patients to leave out"
    add("--leave-out", nargs="+", default=[], metavar="CASE", help=text)
    add("--test", metavar="REGEX", help="paths of the test set (not the spec's)")
    add("--fourth-axis", choices=("channels", "first"), help="what a fourth axis is")
    add("--workers", type=int, default=WORKERS, help="processes (%(default)s)")
    add("--list", action="store_true", help="show the known datasets")
    group = parser.add_argument_group("any collection of your own", "; ".join(OWN.values()))
    add = group.add_argument
    add("--name", dest="dataset_name", help="name of the dataset")
    add("--images", nargs="+", metavar="CHANNEL=WHERE", help="where images lie")
    text = "dicom: series by modality, description, orientation (none: list them)"
    add("--series", nargs="+", default=[], metavar="[CHANNEL=]REGEX", help=text)
    text = "where labels lie, or REGEX of SEG and RTSTRUCT (none: images only)"
    add("--label", metavar="WHERE", help=text)
    text = "label names; dicom: NAME=REGEX of structures"
    add("--labels", nargs="+", default=[], metavar="NAME[=VALUE]", help=text)
    text = "folder: a file for each structure, in place of --label and --labels"
    add("--mask", nargs="+", action="extend", default=[], metavar="NAME=WHERE", help=text)
    add("--overlap", choices=("refuse", "last"), help="voxels of two structures")
    text = "dicom: PatientIDs in names of cases, not names made of them with a secret"
    add("--keep-ids", action="store_true", help=text)


@command("nnssl_convert", __doc__, _add_options, example="ACDC /data/ACDC -d 27", resumes=True)
def main(options: Namespace) -> None:
    _list() if options.list else _convert(options)


def _list() -> None:
    from nnssl.convert.spec import find_specs, read_spec

    for path in find_specs(user_folders()).values():
        spec = read_spec(path)
        named = [name for name in spec.labels if name != "background"]
        labels = ", ".join(["as in the source's own file"] if spec.derive else named)
        first = spec.layout.strip().splitlines()[0].strip()
        texts = [f"labels: {labels}", f"layout: {first}", f"{spec.licence}; {spec.where}"]
        print("\n".join([f"{spec.name:<23}{spec.description}", *(f"{'':<23}{t}" for t in texts)]))
    print("\n".join(f"{name:<23}data of your own: {line}" for name, line in OWN.items()))


def _convert(options: Namespace) -> None:
    from nnssl.convert.cine import check_cines, make_patient_pattern, write_cines
    from nnssl.convert.dicom_tree import read_patient_key
    from nnssl.convert.engine import ConversionTarget, check_source, convert
    from nnssl.convert.planning import Conversion
    from nnssl.convert.records import find_doubts, suggest_configuration

    if options.name is None or options.source is None or options.dataset_id is None:
        raise ValueError(
            "needs NAME SOURCE -d ID, for example: nnssl_convert ACDC /data/ACDC -d 27"
        )
    spec = _prepare_spec(options)
    target = ConversionTarget.of(
        root_folder(RAW), root_folder(PREPROCESSED), options.dataset_id, spec.name
    )
    conversion = Conversion(spec, options.source, options.n4, options.workers, options.leave_out)
    if spec.dicom:
        key = None if options.keep_ids else read_patient_key(target.raw.parent)
        conversion = replace(conversion, key=key)
        print("\n".join(conversion.find_series().remarks))
    cines = check_cines(conversion) if options.cine else []
    if options.dry_run:
        _show(check_source(conversion), cines)
        return
    checked = convert(conversion, target)
    warn(find_doubts(checked))
    patients = len({each.case.patient for each in checked})
    print(f"{target.raw}: {len(checked)} cases of {patients} patients")
    groups = guess_patients(each.case.identifier for each in checked)
    if groups and patients == len(checked):
        rule = suggest_rule(groups)
        warn([f"{describe_groups(groups)} {SAY}nnssl_cases -d {options.dataset_id} {rule} --folds"])
    notes = [note for each in checked for of_file in each.notes.values() for note in of_file]
    for text, count in Counter(note.partition(" (")[0] for note in notes).items():
        print(f"{count} files: {text}")
    if len({each.case.patient for each in checked if each.case.part == "Tr"}) == 1:
        print("one training patient makes no folds; train fold all")
    print(f"please cite: {spec.citation}")
    suits, why = suggest_configuration(checked)
    print(f"{suits} suits these images: {why}")
    print(f"next: nnUNetv2_plan_and_preprocess -d {options.dataset_id} -c {suits}")
    if cines:
        folder = write_cines(conversion, target.raw, cines)
        print(f"{folder}: {_count_frames(cines)}")
        names = f"-i {shlex.quote(str(folder))} --patient '{make_patient_pattern(spec)}'"
        print(f"then: nnssl_preprocess_unlabelled -d {options.dataset_id} -c {suits} {names}")


def _count_frames(cines: Sequence[Cine]) -> str:
    frames = sum(len(each.frames) for each in cines)
    return f"{frames} frames without labels of {len({each.patient for each in cines})} patients"


def _prepare_spec(options: Namespace) -> DatasetSpec:
    """The spec of a name, as options and source folder complete it."""
    if options.mask and options.name != FOLDER:
        raise ValueError(f"--mask is for {FOLDER}, not for {options.name}")
    if options.name in OWN:
        spec = _make_own_spec(options)
    else:
        spec = _find_spec(options.name)
        if options.dataset_name or options.images or options.label or options.labels:
            raise ValueError(
                f"--name, --images, --label and --labels are for {', '.join(OWN)}; {spec.name} "
                "says itself what its files are (--list)"
            )
        spec = spec.derive_from(options.source) if options.source.is_dir() else spec
    chosen = {
        "slices": "resample" if options.resample else None,
        "test": options.test or None,
        "fourth_axis": options.fourth_axis,
        "headers": options.headers,
        "nan": options.nan,
    }
    spec = replace(spec, **{key: value for key, value in chosen.items() if value is not None})
    return spec.without_labels() if options.images_only else spec


def _make_own_spec(options: Namespace) -> DatasetSpec:
    from nnssl.convert.bids import make_bids_spec
    from nnssl.convert.datalist import make_datalist_spec
    from nnssl.convert.dicom_spec import make_dicom_spec
    from nnssl.convert.dicom_tree import read_tree
    from nnssl.convert.private import make_private_spec

    dicom = options.name == DICOM
    if not options.dataset_name or not (options.images or dicom):
        what, example = "" if dicom else " and --images", OWN[options.name]
        raise ValueError(f"{options.name} needs --name{what}, for example: {example}")
    if dicom:
        return make_dicom_spec(
            read_tree(options.source, options.workers),
            options.dataset_name,
            options.series,
            None if options.images_only else options.label,
            [] if options.images_only else options.labels,
            overlap=options.overlap,
        )
    files = options.dataset_name, options.images, options.label, options.labels
    if options.name != FOLDER:
        return {BIDS: make_bids_spec, DATALIST: make_datalist_spec}[options.name](*files)
    return make_private_spec(*files, options.mask, overlap=options.overlap)


def _find_spec(name: str) -> DatasetSpec:
    from nnssl.convert.spec import find_specs, read_spec

    specs = find_specs(user_folders())
    if name not in specs:
        near = difflib.get_close_matches(name, specs, 3, 0.3) or sorted(specs)
        raise ValueError(f"unknown dataset {name!r}; did you mean {', '.join(near)}? (--list)")
    return read_spec(specs[name])


def _show(checked: Sequence[CheckedCase], cines: Sequence[Cine]) -> None:
    from nnssl.convert.records import find_doubts
    from nnssl.convert.tasks import list_tasks

    for each in checked:
        size = "x".join(map(str, each.size))
        spacing = "x".join(f"{value:.2f}" for value in each.spacing)
        names = ", ".join(task.target for task in list_tasks(each.case))
        print(f"{each.case.patient}  {size}  {spacing} mm  {each.orientation}  {names}")
    for cine in cines:
        size = "x".join(map(str, cine.size))
        frames = f"{len(cine.frames)} frames of {cine.file}"
        print(f"{cine.patient}  {size}  {cine.orientation}  {frames}")
    warn(find_doubts(checked))
    if cines:
        print(_count_frames(cines))
    print(f"{len(checked)} cases; nothing was written (--dry-run)")
