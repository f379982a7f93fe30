"""What the converter and the unlabelled preprocessing make of a damaged image: right or wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import blosc2
import nibabel
import numpy as np
from damaged import Damaged, read_content
from native import dicom, intensities, mgz, write
from PIL import Image

from nnssl.convert.engine import ConversionTarget, convert
from nnssl.convert.planning import Conversion
from nnssl.convert.private import make_private_spec
from nnssl.convert.sources import ConversionError
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.data.unlabelled.preprocess import UnlabelledTask, preprocess_unlabelled
from nnssl.data.unlabelled.records import read_images
from nnssl.data.unlabelled.sources import FileChoice

REFUSED, ACCEPTED = "clear refusal", "right acceptance"
Road = Callable[[Damaged, Path], object]


def judge(image: Damaged, road: Road, work: Path) -> str:
    """``clear refusal``, ``right acceptance``, or what is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        right = road(image, work)
    except ConversionError as error:
        named = [str(each) for each in error.problems]
        if not all(each.startswith(("a", "series")) and len(each) < 600 for each in named):
            return f"unclear: {named}"
        return REFUSED if image.refused else f"refused: {named}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return ACCEPTED if right else "taken for something else"


def convert_image(image: Damaged, work: Path) -> bool:
    """Beside a good image of the same format; whether the result is one of those allowed."""
    first, source = image.files[0], work / "source"
    shutil.copytree(first.parent, source / "a")
    ending = first.name.removeprefix("image")
    if "series" in _kind(image):
        dicom(source / "b", intensities(1))
        template = "{case}/"
    else:
        _write_good(source / "b" / first.name)
        template = f"{{case}}/image{ending}"
    spec = make_private_spec("X", [f"MR={template}"])
    target = ConversionTarget.of(work / "raw", work / "pre", 7, "X")
    convert(Conversion(spec, source), target)
    return read_content(target.raw / "imagesTr" / "a_0000.nii.gz") in image.read_as


def preprocess_image(image: Damaged, work: Path, plan: PreprocessingPlan) -> bool:
    """Whether nnU-Net's preprocessing gives what it gives for one of those allowed."""
    source = work / "source"
    shutil.copytree(image.files[0].parent, source / "a")
    preprocessed = partial(_preprocess, work=work, plan=plan)
    found = preprocessed(source, "found")
    for number, content in enumerate(image.read_as):
        folder = work / f"truth_{number}"
        folder.mkdir()
        nibabel.save(nibabel.Nifti1Image(content.voxels, content.affine), folder / "a.nii.gz")
        if _equal(found, preprocessed(folder, f"truth_{number}")):
            return True
    return False


def _kind(image: Damaged) -> str:
    return "series" if image.name.startswith("dicom") else "file"


def _write_good(path: Path) -> None:
    path.parent.mkdir(parents=True)
    if path.suffix in (".png", ".tif"):
        Image.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10)).save(path)
    elif path.suffix == ".mgz":
        mgz(path, intensities(1))
    elif path.suffix == ".hdr":
        image = nibabel.AnalyzeImage(intensities(1).T, np.diag([-1.0, 1, 1, 1]))
        nibabel.save(image, path.with_suffix(".img"))
    else:
        write(path, intensities(1))


def _preprocess(
    source: Path, name: str, work: Path, plan: PreprocessingPlan
) -> tuple[np.ndarray, list[float], str]:
    choice = FileChoice(plan.endings)
    task = UnlabelledTask(work / "dataset", source, name, plan, choice)
    preprocess_unlabelled(task, 1)
    (record,) = read_images(task.folder)
    (file,) = task.folder.glob("*.b2nd")
    return blosc2.open(str(file))[:], list(record.spacing), record.orientation


def _equal(one: tuple, other: tuple) -> bool:
    return (
        one[0].shape == other[0].shape
        and np.allclose(one[0], other[0], atol=1e-3)
        and np.allclose(one[1], other[1], rtol=1e-3)
        and one[2] == other[2]
    )
