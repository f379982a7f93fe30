"""NRRD, MetaImage and GIPL, after a look at what ITK passes over: are packed voxels whole?"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

from nnssl.convert.volumes import ImageAndNotes

NRRD, META = (".nrrd", ".nhdr"), (".mha", ".mhd")
PARTNERS = {".hdr": ".img", ".img": ".hdr"}  # Analyze and NIfTI pairs
END_OF_HEADER = re.compile(rb"ElementDataFile *= *([^\r\n]+)\r?\n?|\r?\n\r?\n")
DATA_FILE = re.compile(rb"^data ?file: *(.+?)\r?$", re.MULTILINE)
COMPRESSED = re.compile(rb"^(?:encoding: *(gz|gzip)|CompressedData *= *(True))\r?$", re.MULTILINE)
NUMBERS = re.compile(
    rb"^(ElementSpacing|ElementSize|Offset|Origin|Position|TransformMatrix) *= *(.*?) *\r?$",
    re.MULTILINE,
)
SIZE = re.compile(rb"^CompressedDataSize *= *(\d+)", re.MULTILINE)
SKIPS = re.compile(rb"^(?:line|byte) ?skip: *[^0]|HeaderSize *= *[^0]", re.MULTILINE)


def find_partner(path: Path) -> Path | None:
    """The file that belongs to a file: of voxels, as its header says, or of the header."""
    if partner := PARTNERS.get(path.suffix.lower()):
        return path.with_suffix(partner)
    if path.suffix.lower() not in (".nhdr", ".mhd"):
        return None
    head = path.read_bytes()[:65536]
    found = (DATA_FILE if path.suffix.lower() == ".nhdr" else END_OF_HEADER).search(head)
    name = ((found and found[1]) or b"").decode(errors="replace").strip()
    return path.parent / name if name and not re.match(r"LIST|LOCAL|.*%\d*d", name) else None


def read_itk(path: Path) -> ImageAndNotes:
    """Read a NRRD, MetaImage or GIPL file.

    Raises:
        ValueError: Truncated, or packed voxels that do not match their checksum.
    """
    if path.suffix.lower() in (*NRRD, *META):
        _check_header_and_voxels(path)
    return sitk.ReadImage(str(path)), ()


def _check_header_and_voxels(path: Path) -> None:
    """ITK takes what is no number for 0, and checks neither the CRC of gzip nor the sum of zlib."""
    content, partner = path.read_bytes(), find_partner(path)
    end = END_OF_HEADER.search(content)
    head = content[: end.start()] if end else content
    for key, values in NUMBERS.findall(head):
        lowest = 0.0 if key == b"ElementSpacing" else -math.inf
        if not all(lowest < float(value) < math.inf for value in values.split()):
            raise ValueError(f"has {key.decode()} = {values.decode()} in its header")
    if not (packed := COMPRESSED.search(head)) or SKIPS.search(head):
        return
    data = partner.read_bytes() if partner else content[end.end() if end else len(content) :]
    unpack: Callable[[bytes], bytes] = gzip.decompress if packed[1] else zlib.decompress
    if (size := SIZE.search(head)) and int(size[1]) != len(data):
        raise ValueError(f"holds {len(data)} packed bytes; its header says {int(size[1])}")
    found, reader = len(unpack(data)), sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    axes, kind = reader.GetDimension(), reader.GetPixelID()
    one = sitk.Image([1] * axes, kind, reader.GetNumberOfComponents())
    expected = math.prod(reader.GetSize()) * sitk.GetArrayViewFromImage(one).nbytes
    if found != expected:
        raise ValueError(f"holds {found} bytes of voxels; its header says {expected}")
