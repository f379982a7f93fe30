"""``nnssl_features``: what a pre-trained encoder says of whole images, for any classifier.

Images lie in one folder as nnU-Net's imagesTs: CASE_0000.nii.gz, a file per channel.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from nnssl.cli.command import add_device, command, find_device


def _add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("run", help="folder of a run, its checkpoint, or hf://owner/name")
    add("-i", type=Path, required=True, dest="images", help="folder of images")
    add("-o", type=Path, required=True, dest="output", help="file to write (features.npz)")
    add_device(parser)


@command("nnssl_features", __doc__, _add_options, example="fold_0 -i imagesTs -o features.npz")
def main(options: Namespace) -> None:
    import numpy as np

    from nnssl.common.files import atomic_path
    from nnssl.nnunet.checkpoint import speaking_of
    from nnssl.nnunet.paths import find_raw_images
    from nnssl.nnunet.weight_files import find_weight_file, read_weights
    from nnssl.probe.image_features import FeatureReader, read_features

    file = find_weight_file(options.run)
    checkpoint = read_weights(file)
    with speaking_of(file):
        reader = FeatureReader.of(checkpoint, find_device(options))
    ending = str(reader.dataset_json.get("file_ending", ".nii.gz"))
    cases = find_raw_images(options.images, ending)
    if not cases:
        raise ValueError(f"-i: {options.images} holds no image CASE_0000{ending}")
    if options.output.suffix != ".npz":
        raise ValueError(f"-o: found {options.output}; allowed is a file that ends in .npz")
    features = read_features(reader, cases)
    with atomic_path(options.output) as part:
        np.savez_compressed(part, allow_pickle=False, **features)
    stages = sum(name.startswith("stage_") for name in features)
    print(f"{options.output}: {len(cases)} images, {len(features['case'])} tiles, {stages} stages")
