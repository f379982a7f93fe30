"""Damaged images of every format, by the hundred, and what may be made of each of them."""

from __future__ import annotations

import gzip
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from native import UPRIGHT, dicom, intensities, mgz, write
from PIL import Image

SHAPE = (6, 12, 10)  # z, y, x
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NIFTI = {  # field -> its place and type in the header of NIfTI and Analyze
    "dim": (40, "h"), "datatype": (70, "h"), "bitpix": (72, "h"), "pixdim": (76, "f"),
    "vox_offset": (108, "f"), "scl_slope": (112, "f"), "scl_inter": (116, "f"),
    "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "f"),
    "qoffset": (268, "f"), "srow": (280, "f"),
}  # fmt: skip
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Content:
    """Voxels (x, y, z) and their affine (mm, RAS)."""

    voxels: np.ndarray
    affine: np.ndarray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Content)
            and self.voxels.shape == other.voxels.shape
            and np.allclose(self.voxels, other.voxels, rtol=1e-5)
            and np.allclose(self.affine, other.affine, rtol=1e-3, atol=1e-3)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Damaged:
    """Files of one image, whether it may be refused, and what it may be read as."""

    name: str
    files: tuple[Path, ...]
    refused: bool
    read_as: tuple[Content, ...]


def read_content(path: Path) -> Content:
    """What nibabel, which the converter does not use for these files, reads."""
    image = nibabel.load(path)
    return Content(np.asarray(image.dataobj), image.affine)


def make_damaged(root: Path, seed: int = 0, array: np.ndarray | None = None) -> list[Damaged]:
    """About 490 images, each in a folder of its own below ``root``."""
    rng = np.random.default_rng(seed)
    array = intensities(seed, SHAPE) if array is None else array
    found = [
        *_nifti(root / "nifti", array, rng), *_analyze(root / "analyze", array, rng),
        *_itk(root / "itk", array, rng), *_series(root / "dicom", array),
        *_flat(root / "flat", array[0], rng), *_values(root / "values", array),
    ]  # fmt: skip
    names = [each.name for each in found]
    assert len(set(names)) == len(names)
    return found


# what may happen: (may be refused, may be read as the undamaged image)
REFUSED, SAME, EITHER = (True, False), (False, True), (True, True)


def _case(
    folder: Path, name: str, files: Sequence[Path], what: tuple[bool, bool], truth: Content
) -> Damaged:
    return Damaged(f"{folder.name} {name}", tuple(files), what[0], (truth,) if what[1] else ())


def _set(content: bytes, field: str, value: float, index: int = 0) -> bytes:
    place, kind = NIFTI[field]
    place += index * struct.calcsize(kind)
    new = struct.pack(f"<{kind}", value)
    return content[:place] + new + content[place + len(new) :]


def _flip(content: bytes, place: int, rng: np.random.Generator) -> bytes:
    changed = content[place] ^ int(rng.integers(1, 256))
    return content[:place] + bytes([changed]) + content[place + 1 :]


FIELDS: tuple[tuple[str, float, int, tuple[bool, bool]], ...] = (
    *(("dim", value, 0, REFUSED) for value in (0, -1, 8, 2, 99)),
    *(("dim", value, axis, REFUSED) for value in (0, -5, 30000) for axis in (1, 2, 3)),
    *(("datatype", value, 0, REFUSED) for value in (0, 1, 32, 99, 1536, 1792)),
    ("bitpix", 5, 0, EITHER), ("bitpix", 64, 0, EITHER),
    *(("pixdim", value, axis, REFUSED) for value in (0, NAN, INF, 1e-30, 1e30) for axis in (1, 3)),
    ("pixdim", 0, 2, REFUSED), ("pixdim", NAN, 2, REFUSED), ("pixdim", -INF, 2, REFUSED),
    *(("vox_offset", v, 0, REFUSED) for v in (100, 348, 351, -16, NAN, INF, -INF, 1e9, 1e30)),
    *(("scl_slope", value, 0, REFUSED) for value in (NAN, INF, -INF, 1e38, -1e38)),
    ("scl_slope", 0, 0, SAME),
    *(("scl_inter", value, 0, REFUSED) for value in (NAN, INF, 3e38)),
    *(("srow", value, index, REFUSED) for value in (NAN, INF, 1e30) for index in (0, 3, 5, 11)),
    ("quatern", NAN, 0, EITHER), ("quatern", 7.0, 1, EITHER), ("qoffset", NAN, 0, EITHER),
)  # fmt: skip


def _nifti(root: Path, array: np.ndarray, rng: np.random.Generator) -> Iterator[Damaged]:
    whole = write(root / "whole.nii", array).read_bytes()
    packed, truth = gzip.compress(whole, mtime=0), read_content(root / "whole.nii")
    for ending, content in ((".nii", whole), (".nii.gz", packed)):
        pack = gzip.compress if ending == ".nii.gz" else bytes
        folder = root / ending

        def put(name: str, data: bytes, what, folder=folder, ending=ending) -> Damaged:
            path = folder / name / f"image{ending}"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
            return _case(folder, name, [path], what, truth)

        for cut in (0, 1, 100, 347, len(content) // 2, len(content) - 9, len(content) - 1):
            yield put(f"cut at {cut}", content[:cut], REFUSED)
        for field, value, index, what in FIELDS:
            yield put(f"{field}[{index}]={value}", pack(_set(whole, field, value, index)), what)
        yield put("vox_offset=0", pack(_set(whole, "vox_offset", 0)), EITHER)
        for name, magic in (("none", b"\0\0\0\0"), ("pair", b"ni1\0"), ("bad", b"abc\0")):
            yield put(f"magic {name}", pack(whole[:344] + magic + whole[348:]), EITHER)
        for k in range(24):
            place = int(rng.integers(0, 348))
            made = put(f"flip {k} at {place}", pack(_flip(whole, place, rng)), EITHER)
            yield Damaged(made.name, made.files, True, (truth, *_other_readings(made.files[0])))
    for k, place in enumerate(rng.integers(10, len(packed), 12)):
        yield put(f"gzip flip {k}", _flip(packed, int(place), rng), EITHER)
    yield put("gzip twice", gzip.compress(packed), REFUSED)
    yield put("not gzip", whole, EITHER)
    yield put("gzip garbage behind", packed + b"garbage", EITHER)


def _other_readings(path: Path) -> list[Content]:
    """What the header of a NIfTI file may legally mean now, by sform or by qform."""
    try:
        image = nibabel.load(path)
        voxels, header = np.asarray(image.dataobj), image.header
        affines = [image.affine, header.get_qform(), header.get_sform()]
        scale = {1: 1e3, 3: 1e-3}.get(int(header["xyzt_units"]) & 7, 1)
        spacings = np.abs([np.linalg.norm(a[:3, :3], axis=0) for a in affines])
    except Exception:
        return []
    sane = voxels.ndim == 3 and voxels.dtype.kind in "iuf" and np.isfinite(voxels).all()
    sizes = np.diag([scale, scale, scale, 1.0])
    return [
        Content(voxels, each @ np.diag([*factor, 1.0]))
        for a, spacing in zip(affines, spacings, strict=True)
        if sane and np.isfinite(a).all() and (spacing > 1e-5).all() and (spacing < 1e4).all()
        for each in (a, sizes @ a)
        for factor in ([1, 1, 1], np.abs(header["pixdim"][1:4]) * scale / spacing)
    ]


def _analyze(root: Path, array: np.ndarray, rng: np.random.Generator) -> Iterator[Damaged]:
    """Analyze 7.5: x runs to the left, y to the front, z to the head."""
    root.mkdir(parents=True)
    image = nibabel.AnalyzeImage(array.T, np.diag([-1.5, 1.25, 3.0, 1.0]))
    image.header.set_zooms((1.5, 1.25, 3.0))
    nibabel.save(image, root / "whole.img")
    header = (root / "whole.hdr").read_bytes()
    voxels = (root / "whole.img").read_bytes()
    first = read_content(root / "whole.img")
    truth = Content(first.voxels, first.affine)

    def put(name: str, head: bytes, what, body: bytes = voxels) -> Damaged:
        path = root / name / "image.hdr"
        path.parent.mkdir(parents=True)
        path.write_bytes(head)
        if body:
            path.with_suffix(".img").write_bytes(body)
        return _case(root, name, [path], what, truth)

    yield put("whole", header, SAME)
    yield put("no voxels", header, REFUSED, b"")
    for cut in (1, 100, len(voxels) // 2, len(voxels) - 1):
        yield put(f"voxels cut at {cut}", header, REFUSED, voxels[:cut])
    for cut in (0, 100, 347):
        yield put(f"header cut at {cut}", header[:cut], REFUSED)
    for field, value, index, what in FIELDS:
        known = field in ("dim", "datatype", "pixdim") and value != 99
        if known and not (field == "datatype" and value > 32):
            yield put(f"{field}[{index}]={value}", _set(header, field, value, index), what)


def _itk(root: Path, array: np.ndarray, rng: np.random.Generator) -> Iterator[Damaged]:
    for ending in (".nrrd", ".nhdr", ".mha", ".mhd"):
        folder = root / ending
        whole = write(folder / "whole" / f"image{ending}", array)
        image = sitk.ReadImage(str(whole))
        sitk.WriteImage(image, str(root / "truth.nii"))
        truth = read_content(root / "truth.nii")
        for packed in (True, False):
            kind, at = "packed" if packed else "raw", folder / ("p" if packed else "r")
            at.mkdir()
            sitk.WriteImage(image, str(at / f"image{ending}"), packed)
            yield from _damage_itk(at, folder, kind, ending, truth, rng)


LINES = {  # key of the header -> damaged values; NRRD, then MetaImage
    "sizes": ("0 12 6", "-10 12 6", "10 12", "10 12 7", "99999 99999 99999", "x 12 6"),
    "type": ("block", "complex", "banana"),
    "dimension": ("0", "4", "banana"),
    "encoding": ("banana", "bzip2"),
    "space directions": ("(0,0,0) (0,1.25,0) (0,0,3)", "(nan,0,0) (0,1.25,0) (0,0,3)",
                         "(inf,0,0) (0,1.25,0) (0,0,3)", "(1,0,0) (1,0,0) (0,0,3)"),
    "space origin": ("(nan,0,0)", "(inf,0,0)"),
    "DimSize": ("0 12 6", "-10 12 6", "10 12", "10 12 7", "99999 99999 99999", "x 12 6"),
    "ElementSpacing": ("0 1.25 3", "nan 1.25 3", "-1.5 1.25 3", "inf 1.25 3", "1.5 1.25"),
    "ElementType": ("MET_BANANA", "MET_NONE"),
    "NDims": ("0", "4", "11", "banana"),
    "TransformMatrix": ("0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1"),
    "Offset": ("nan 0 0", "inf 0 0"),
    "ElementDataFile": ("missing.raw",),
    "CompressedDataSize": ("5",),
}  # fmt: skip


def _damage_itk(
    at: Path, folder: Path, kind: str, ending: str, truth: Content, rng: np.random.Generator
) -> Iterator[Damaged]:
    head = (at / f"image{ending}").read_bytes()
    files = [path for path in at.iterdir() if path.suffix != ending]
    beside = files[0] if files else None

    def put(name: str, data: bytes, what, body: bytes | None = None) -> Damaged:
        path = folder / f"{kind} {name}" / f"image{ending}"
        path.parent.mkdir()
        path.write_bytes(data)
        if beside:
            (path.parent / beside.name).write_bytes(beside.read_bytes() if body is None else body)
        return _case(folder, f"{kind} {name}", [path], what, truth)

    yield put("whole", head, SAME)
    for key, values in LINES.items():
        line = re.compile(rf"^{key}( ?[:=] ?)(.*)$".encode(), re.MULTILINE)
        if not line.search(head):
            continue
        for value in values:
            changed = line.sub(rf"{key}\g<1>{value}".encode(), head, count=1)
            legal = key == "ElementSpacing" and value.startswith("-")
            # more voxels than there are, or other ones that a header may name
            yield put(f"{key} {value}", changed, EITHER if legal else REFUSED)
    data = beside.read_bytes() if beside else head
    start = 0 if beside else _begin_of_voxels(head)
    for cut in (start, start + 3, (start + len(data)) // 2, len(data) - 9, len(data) - 1):
        args = (head, REFUSED, data[:cut]) if beside else (data[:cut], REFUSED)
        yield put(f"cut at {cut - start}", *args)
    if kind == "packed":
        for k, place in enumerate(rng.integers(start, len(data), 8)):
            changed = _flip(data, int(place), rng)
            yield put(f"flip {k}", *((head, EITHER, changed) if beside else (changed, EITHER)))


def _begin_of_voxels(content: bytes) -> int:
    mark = b"ElementDataFile = LOCAL\n" if b"ElementDataFile" in content else b"\n\n"
    return content.index(mark) + len(mark)


def _series(root: Path, array: np.ndarray) -> Iterator[Damaged]:
    small = array[:4]
    direction = np.diag([1.5, 1.25, 3.0, 1.0])
    direction[:3, 3] = (-50, -60, -20)
    truth = Content(small.T, LPS @ direction)

    def make(name: str, what, change: Callable[[list[Path]], object], truth=truth) -> Damaged:
        paths = dicom(root / name, small)
        change(paths)
        return _case(root, name, sorted((root / name).iterdir()), what, truth)

    def tags(**values: object) -> Callable[[list[Path]], object]:
        return lambda paths: [edit_dicom(path, **values) for path in paths]

    yield make("whole", SAME, lambda paths: None)
    for cut in (10, 140, 400, -200, -1):
        yield make(
            f"slice cut at {cut}", REFUSED, lambda p, c=cut: p[1].write_bytes(p[1].read_bytes()[:c])
        )
    yield make("one slice missing", REFUSED, lambda p: p[1].unlink())
    yield make("a slice twice", REFUSED, lambda p: shutil.copy(p[1], p[1].with_name("copy.dcm")))
    yield make("empty slice", REFUSED, lambda p: p[1].write_bytes(b""))
    wrong = {
        "PixelSpacing": (["0", "0"], ["nan", "nan"], ["1e30", "1"], ["-1", "1"], None),
        "ImageOrientationPatient": (["0"] * 6, ["nan"] * 6, ["1", "0", "0", "1", "0", "0"], None),
        "ImagePositionPatient": (["nan"] * 3, ["0", "0", "0"], None),
        "Rows": (0, 5, 4000),
        "Columns": (0, 5, 4000),
        "BitsAllocated": (7, 8),
        "RescaleSlope": ("nan", "1e38", "inf"),
    }
    for key, values in wrong.items():
        for value in values:
            # fewer rows than stored voxels: pydicom and GDCM read the first ones
            what = REFUSED
            yield make(f"{key} {value}", what, tags(**{key: value}))
    yield make("mosaic", REFUSED, tags(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    thin = np.diag([1.5, 1.25, 7.0, 1.0])
    thin[:3, 3] = (-50, -60, -20)

    def one_thick(paths: list[Path]) -> None:
        for path in paths[1:]:
            path.unlink()
        edit_dicom(paths[0], SliceThickness="7")

    yield make("one slice of 7 mm", SAME, one_thick, Content(small[:1].T, LPS @ thin))


def edit_dicom(path: Path, **values: object) -> None:
    """Set elements of a DICOM file; None deletes."""
    import pydicom

    pydicom.config.settings.reading_validation_mode = 0
    pydicom.config.settings.writing_validation_mode = 0
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(path)
        for key, value in values.items():
            if value is None:
                delattr(data, key)
            else:
                setattr(data, key, value)
        data.save_as(path)


def _flat(root: Path, array: np.ndarray, rng: np.random.Generator) -> Iterator[Damaged]:
    grey = (array.astype(int) - array.min() >> 3).clip(0, 255).astype(np.uint8)
    affine = LPS @ np.diag([1.0, 1.0, 999.0, 1.0])
    truth = Content(grey.T[..., None], affine)
    for ending in (".png", ".tif"):
        whole = root / f"whole{ending}"
        whole.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(grey).save(
            whole, **({"compression": "tiff_adobe_deflate"} if ending == ".tif" else {})
        )
        content = whole.read_bytes()

        def put(name: str, data: bytes, what, ending=ending) -> Damaged:
            path = root / ending / name / f"image{ending}"
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
            return _case(root / ending, name, [path], what, truth)

        yield put("whole", content, SAME)
        for cut in (0, 20, len(content) // 2, len(content) - 20):
            yield put(
                f"cut at {cut}", content[:cut], EITHER if ending == ".png" and cut > 60 else REFUSED
            )
        begin = content.index(b"IDAT") + 4 if ending == ".png" else 8
        for k, place in enumerate(rng.integers(begin, begin + 60, 8)):
            yield put(f"flip {k}", _flip(content, int(place), rng), EITHER)
    made = mgz(root / "mgz" / "whole.mgz", np.stack([grey] * 4).astype(np.int16))
    content, truth = made.read_bytes(), read_content(made)
    for cut in (0, 20, len(content) // 2, len(content) - 1):
        path = root / "mgz" / f"cut {cut}" / "image.mgz"
        path.parent.mkdir()
        path.write_bytes(content[:cut])
        yield _case(root / "mgz", f"cut {cut}", [path], REFUSED, truth)
    for k, place in enumerate(rng.integers(10, len(content), 8)):
        path = root / "mgz" / f"flip {k}" / "image.mgz"
        path.parent.mkdir()
        path.write_bytes(_flip(content, int(place), rng))
        yield _case(root / "mgz", f"flip {k}", [path], EITHER, truth)


def _values(root: Path, array: np.ndarray) -> Iterator[Damaged]:
    """Values and axes that are no volume of finite numbers, in formats that can hold them."""
    real = array.astype(np.float64)
    spoilt = {"nan": NAN, "inf": INF, "minus inf": -INF, "1e300": 1e300, "1e30": 1e30}
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
        folder = root / ending
        for name, value in spoilt.items():
            for kind in (np.float32, np.float64):
                values = real.copy()
                values[0, 1, 1:4] = value
                if kind is np.float32 and name == "1e300":
                    continue
                path = write(
                    folder / f"{name} {kind.__name__}" / f"image{ending}", values.astype(kind)
                )
                yield _case(
                    folder, f"{name} {kind.__name__}", [path], REFUSED, Content(real.T, np.eye(4))
                )
        stack = {
            "colours": (np.stack([array & 255] * 3, -1).astype(np.uint8), True),
            "vectors": (np.stack([real] * 3, -1).astype(np.float32), True),
            "complex": ((real + 1j).astype(np.complex64), False),
            "four axes": (np.stack([array] * 2), False),
            "two axes": (array[0], False),
        }
        for name, (values, vector) in stack.items():
            path = folder / name / f"image{ending}"
            path.parent.mkdir(parents=True)
            if name == "complex" and ending == ".mha":
                continue
            if name == "complex" and ending == ".nrrd":
                continue
            sitk.WriteImage(sitk.GetImageFromArray(values, isVector=vector), str(path))
            yield _case(folder, name, [path], REFUSED, Content(real.T, np.eye(4)))
    for name, shape, what in (
        ("five axes", (10, 12, 6, 2, 2), REFUSED),
        ("ones behind", (10, 12, 6, 1, 1), EITHER),
    ):
        path = root / name / "image.nii.gz"
        path.parent.mkdir()
        truth = Content(np.resize(array.T, shape[:3]), np.diag([2.0, 2.0, 3.0, 1.0]))
        values = np.resize(array.T, shape[:3])[..., None, None] * np.ones(shape, np.int16)
        image = nibabel.Nifti1Image(values, truth.affine)
        nibabel.save(image, path)
        yield _case(root, name, [path], what, truth)
    write(root / "straight.nii", array, UPRIGHT)
