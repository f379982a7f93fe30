"""Links the images of a few validation cases into one folder, as input of `nnUNetv2_predict`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nnssl.nnunet.cases import read_cases
from nnssl.nnunet.paths import SPLITS_FILE, TRAINING_IMAGES
from nnssl.nnunet.splits import read_splits

COUNT = 4


def main(work: Path) -> None:
    """Into `work/cases`: one case of each of the first patients in fold 0's validation cases."""
    (preprocessed,) = (work / "preprocessed").glob("Dataset*")
    images = work / "raw" / preprocessed.name / TRAINING_IMAGES
    validation = sorted(read_splits(preprocessed / SPLITS_FILE)[0]["val"])
    records = read_cases(preprocessed, validation)
    first = {records[case].patient: case for case in reversed(validation)}
    folder = work / "cases"
    folder.mkdir(exist_ok=True)
    for patient in sorted(first)[:COUNT]:
        for image in images.glob(f"{first[patient]}_[0-9][0-9][0-9][0-9].nii.gz"):
            link = folder / image.name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(image, folder))
            print(link)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
