"""``nnssl_pseudo_label``: a dataset whose unlabelled training cases a fine-tuned model labels.

The models predict the fold's training cases that they had no label of, with mirroring; cases are
ranked by the Dice between the mirrored and the plain prediction. Plain ``nnUNetv2_train`` then
learns from true and pseudo-labels; validation cases keep their true labels. Images are referenced,
not copied.
"""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl.cli.command import add_device, command, dataset_id, find_device
from nnssl.common.files import read_json
from nnssl.nnunet.paths import WEIGHTS, Roots, dataset_number, dataset_prefix, fold_folder

if TYPE_CHECKING:
    from nnssl.training.pseudo_labels import PseudoLabelling


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    text = "folder of a fold, or final checkpoint, of a fine-tuned model; several predict together"
    add("runs", nargs="+", type=Path, metavar="RUN", help=text)
    text = "number of the new dataset, or its full name (Dataset127_NAME)"
    add("-o", required=True, dest="output", help=text)
    add("--keep", type=float, default=0.8, help="share of the cases to take, the surest (0.8)")
    add_device(parser)
    text = "checked against the runs where it is given"
    add("-d", type=dataset_id, dest="dataset", help=f"dataset; {text}")
    add("-c", dest="configuration", help=f"configuration; {text}")
    add("-f", dest="fold", help=f"fold; {text}")


@command("nnssl_pseudo_label", __doc__, _add_options, example="fold_0 -o 127", resumes=True)
def main(options: Namespace) -> None:
    from nnssl.training.pseudo_labels import RECORD_FILE, PseudoLabelling, find_checkpoint

    if not 0 < options.keep <= 1:
        raise ValueError(f"--keep: found {options.keep:g}, allowed: above 0, up to 1")
    labelling = PseudoLabelling(list(map(find_checkpoint, options.runs)), Roots.from_environment())
    _check(options, labelling)
    name = _name(options.output, labelling.dataset)
    folder = labelling.write(name, options.keep, find_device(options))
    record, own = read_json(folder / RECORD_FILE), labelling.own
    values = sorted(record["agreement"].values())
    print(
        f"{folder}: {len(record['true_labels'])} true labels, {len(record['pseudo_labels'])} of "
        f"{len(values)} pseudo-labels (agreement of mirrored predictions {values[0]:.3f} to "
        f"{values[-1]:.3f}), {len(labelling.split[1])} validation cases, in fold 0"
    )
    number, plans, configuration = (
        dataset_number(name),
        own["plans"]["plans_name"],
        own["configuration"],
    )
    first = fold_folder(Path("$nnUNet_results") / name, "nnUNetTrainer", plans, configuration, 0)
    cases = " ".join(f"labels.{unit}={value}" for unit, value in _budget(labelling).items())
    line = f"-p {plans}" if plans != "nnUNetPlans" else ""
    print(
        f"next: nnUNetv2_preprocess -d {number} -plans_name {plans} -c {configuration}\n"
        f"then: nnUNetv2_train {number} {configuration} 0 {line}".rstrip()
        + "\n"
        "fine-tune on true labels: "
        f"{WEIGHTS}={first}/checkpoint_final.pth nnssl_overrides={shlex.quote(cases)} "
        f"nnUNetv2_train {dataset_number(labelling.dataset)} {configuration} {own['fold']} "
        f"-tr nnSSLFinetuneTrainer {line}".rstrip()
    )


def _check(options: Namespace, labelling: PseudoLabelling) -> None:
    """Refuses options that contradict the runs."""
    own = labelling.own
    told = {"-c": own["configuration"], "-f": own["fold"], "-d": dataset_number(labelling.dataset)}
    given = {"-c": options.configuration, "-f": options.fold, "-d": options.dataset}
    for option, value in given.items():
        if value is not None and str(value) != str(told[option]):
            raise ValueError(f"{option} {value}: the runs say {told[option]}")


def _name(output: str, source: str) -> str:
    if output.isdecimal():
        return f"{dataset_prefix(int(output))}{source[11:]}_pseudo"
    dataset_id(output)
    return output


def _budget(labelling: PseudoLabelling) -> dict[str, object]:
    """The label budget of the runs, as overrides."""
    labels = labelling.contents[0]["nnssl"]["labels"]
    unit = labels["unit"]
    return {} if unit == "all" else {unit: labels["value"], "seed": labels["seed"]}
