"""``nnssl_convert``: a native download becomes an nnU-Net dataset."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nnssl.datasets.checks import Checked
from nnssl.datasets.engine import Target, check, convert
from nnssl.datasets.records import target_files
from nnssl.datasets.spec import DatasetSpec, find_specs, read_spec


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; errors end the program with one message and status 1."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            _list()
        else:
            _convert(options)
    except KeyboardInterrupt:
        sys.exit("nnssl_convert: interrupted; the same command goes on where it stopped")
    except (ValueError, OSError) as error:
        sys.exit(f"nnssl_convert: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nnssl_convert", description=__doc__)
    parser.add_argument("name", nargs="?", help="dataset, see --list")
    parser.add_argument("source", nargs="?", type=Path, help="folder of the native download")
    parser.add_argument("-d", type=int, dest="dataset_id", help="nnU-Net dataset id")
    parser.add_argument("--n4", action="store_true", help="correct the bias field (slow)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, help="processes (%(default)s)")
    parser.add_argument("--list", action="store_true", help="show the known datasets")
    return parser


def _list() -> None:
    for path in _specs().values():
        spec = read_spec(path)
        print(f"{spec.name:<16}{spec.description}\n{'':<16}{spec.licence}; {spec.where}")


def _convert(options: argparse.Namespace) -> None:
    if options.name is None or options.source is None or options.dataset_id is None:
        raise ValueError(
            "needs NAME SOURCE -d ID, for example: nnssl_convert ACDC /data/ACDC -d 27"
        )
    spec = _spec(options.name)
    target = Target.of(
        _folder("nnUNet_raw"), _folder("nnUNet_preprocessed"), options.dataset_id, spec.name
    )
    if options.dry_run:
        _show(check(spec, options.source, options.workers))
        return
    checked = convert(spec, options.source, target, options.n4, options.workers)
    patients = len({each.case.patient for each in checked})
    print(f"{target.raw}: {len(checked)} cases of {patients} patients")
    print(f"please cite: {spec.citation}")
    print(f"next: nnUNetv2_plan_and_preprocess -d {options.dataset_id} -c 2d")


def _specs() -> dict[str, Path]:
    folders = os.environ.get("nnssl_configs", "").split(os.pathsep)  # noqa: SIM112
    return find_specs([Path(folder) for folder in folders if folder])


def _spec(name: str) -> DatasetSpec:
    specs = _specs()
    if name not in specs:
        near = difflib.get_close_matches(name, specs, 3, 0.3) or sorted(specs)
        raise ValueError(f"unknown dataset {name!r}; did you mean {', '.join(near)}? (--list)")
    return read_spec(specs[name])


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise ValueError(
            f"the environment variable {variable} is not set; export {variable}=FOLDER"
        )
    return Path(value)


def _show(checked: Sequence[Checked]) -> None:
    for each in checked:
        size = "x".join(map(str, each.size))
        spacing = "x".join(f"{value:.2f}" for value in each.spacing)
        names = ", ".join(name for _, name in target_files(each.case))
        print(f"{each.case.patient}  {size}  {spacing} mm  {each.orientation}  {names}")
    print(f"{len(checked)} cases; nothing was written (--dry-run)")


if __name__ == "__main__":
    main()
