"""``nnssl_export``: a run as a folder that travels: safetensors, stock checkpoint, plans, card."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnssl.cli.command import command
from nnssl.nnunet.paths import PROBE_FILE


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("run", help="folder of a finished run, or its checkpoint (checkpoint_final.pth)")
    add("--to", type=Path, required=True, help="folder to write, which is not there yet")
    add("--licence", help="of the weights, as hubs name licences (cc-by-4.0)")
    text = "let names and signatures of the training cases travel too, so that leaks can be found"
    add("--with-cases", action="store_true", help=text)


@command(
    "nnssl_export", __doc__, _add_options, example="fold_0 --to /data/export --licence cc-by-4.0"
)
def main(options: Namespace) -> None:
    from nnssl.nnunet.checkpoint import read_checkpoint, speaking_of
    from nnssl.nnunet.export import prepare, write
    from nnssl.nnunet.runs import read_probe
    from nnssl.nnunet.weight_files import find_weight_file

    file = find_weight_file(options.run)
    checkpoint = read_checkpoint(file)
    with speaking_of(file):
        export = prepare(checkpoint, options.with_cases)
    write(export, options.to, options.licence, read_probe(file.parent / PROBE_FILE))
    print(f"{options.to}: {len(list(options.to.rglob('*.*')))} files; README.md is the model card")
    if options.licence is None:
        print("no licence is said: nobody else may use them. --licence cc-by-4.0, for instance")
