"""DICOM as hospitals export it: series, multi-frame images, SEG and RTSTRUCT of small arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from skimage.measure import find_contours

OBLIQUE = np.array([[0.96, 0.28, 0.0], [-0.224, 0.768, 0.6]])  # along columns, along rows
CORONAL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
SPACING, DISTANCE, ORIGIN = (1.25, 1.5), 3.0, np.array([-30.0, 12.5, -40.0])  # columns, rows; mm
MR, CAPTURE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
PIXELS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]
PIXELS += ["SamplesPerPixel", "PhotometricInterpretation", "ImageType"]


def place(k: int, axes: np.ndarray = OBLIQUE) -> list[float]:
    """Position of slice k, rounded as in real files."""
    return [round(float(v), 4) for v in ORIGIN + k * DISTANCE * np.cross(*axes)]


def new_object(sop: str, patient: str = "Doe^J 123", study: str = "1.2.3", **tags: Any) -> Dataset:
    """An object with the header that all have: names and dates that must not travel."""
    ds = Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID = sop
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PatientID, ds.PatientName, ds.PatientBirthDate = patient, "Doe^Jane", "19701231"
    ds.PatientSex, ds.StudyInstanceUID, ds.StudyDate, ds.StudyTime = "F", study, "20180410", "1200"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "A77", "1", "House^G"
    ds.Manufacturer, ds.Modality, ds.SeriesInstanceUID = "x", "MR", generate_uid()
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path,
    array: np.ndarray,
    description: str = "t1_tse_tra",
    axes: np.ndarray = OBLIQUE,
    **tags: Any,
) -> list[Dataset]:
    """Slices (z, y, x) of one series, written against their order in space."""
    uid = tags.pop("SeriesInstanceUID", generate_uid())
    frame = tags.pop("FrameOfReferenceUID", generate_uid())
    slices = []
    for k, values in enumerate(array):
        ds = new_object(MR, **tags)
        ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.SeriesNumber = uid, frame, "3"
        ds.SeriesDescription, ds.InstanceNumber = description, str(len(array) - k)
        ds.ImageType, ds.PositionReferenceIndicator = ["ORIGINAL", "PRIMARY"], ""
        ds.ImagePositionPatient, ds.SliceThickness = place(k, axes), str(DISTANCE)
        ds.ImageOrientationPatient = axes.ravel().tolist()
        ds.PixelSpacing = [SPACING[1], SPACING[0]]
        ds.Rows, ds.Columns = values.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.PixelData = values.astype("<i2").tobytes()
        save(ds, folder / f"IM{len(array) - k:04d}")
        slices.append(ds)
    return slices


def segmentation(
    path: Path, slices: Sequence[Dataset], masks: Mapping[str, np.ndarray], kind: str = "BINARY"
) -> Dataset:
    """A SEG of several structures (z, y, x), written by highdicom; empty frames are left out."""
    about = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(masks, 1)
    ]
    stacked = np.stack(list(masks.values()), -1).astype(np.uint8)
    if kind == "LABELMAP":
        stacked = (stacked * np.arange(1, len(masks) + 1)).max(-1).astype(np.uint8)
    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=stacked,
        segmentation_type=kind,
        segment_descriptions=about,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        series_description="drawn by hand",
    )
    save(seg, path)
    return seg


def structure_set(
    path: Path, slices: Sequence[Dataset], masks: Mapping[str, np.ndarray], axes=OBLIQUE
) -> Dataset:
    """An RTSTRUCT whose contours run half-way between voxels of masks (z, y, x) and others."""
    ds = new_object("1.2.840.10008.5.1.4.1.1.481.3", slices[0].PatientID)
    ds.Modality, ds.SeriesInstanceUID, ds.StructureSetLabel = "RTSTRUCT", generate_uid(), "plan"
    inner, study, frame = Dataset(), Dataset(), Dataset()
    inner.SeriesInstanceUID = slices[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = [inner]
    frame.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, mask) in enumerate(masks.items(), 1):
        roi, outline = Dataset(), Dataset()
        roi.ROINumber = outline.ReferencedROINumber = number
        roi.ROIName, roi.ReferencedFrameOfReferenceUID = name, frame.FrameOfReferenceUID
        outline.ContourSequence = []
        for k, flat in enumerate(mask):
            for points in find_contours(np.pad(flat.astype(float), 1), 0.5):
                y, x = (points - 1).T
                world = np.array(place(k, axes)) + np.outer(x * SPACING[0], axes[0])
                world += np.outer(y * SPACING[1], axes[1])
                contour = Dataset()
                contour.ContourGeometricType = "CLOSED_PLANAR"
                contour.NumberOfContourPoints = len(world)
                contour.ContourData = [f"{value:.4f}" for value in world.ravel()]
                outline.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(outline)
    save(ds, path)
    return ds


def multi_frame(path: Path, slices: Sequence[Dataset], **tags: Any) -> Dataset:
    """The slices in one file, with a slope of their own, in an order of their own."""
    first = slices[0]
    ds = new_object("1.2.840.10008.5.1.4.1.1.4.1", first.PatientID, first.StudyInstanceUID)
    ds.SeriesDescription, ds.SeriesInstanceUID = first.SeriesDescription, generate_uid()
    ds.FrameOfReferenceUID, ds.NumberOfFrames = first.FrameOfReferenceUID, len(slices)
    for name in PIXELS:
        setattr(ds, name, getattr(first, name))
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], []
    order = [*range(1, len(slices), 2), *range(0, len(slices), 2)]
    for k in order:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = slices[k].ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = "2", str(10 * k), "US"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.PixelData = b"".join(slices[k].PixelData for k in order)
    for name, value in tags.items():
        setattr(ds, name, value)
    save(ds, path)
    return ds
