"""Every public dataset in its native layout, with its quirks, in miniature."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from native import SHAPE, dicom, intensities, mgz, photograph, pictures, values_in, write

ASEG = (0, 8, 47, 7, 46, 3, 42, 2, 41, 10, 49, 17, 53, 18, 54, 4, 43, 11, 50, 12, 51, 13, 52, 28,
        60, 14, 16, 77, 251, 1035, 2000)  # fmt: skip
SEVEN = (0, 205, 420, 421, 500, 550, 600, 820, 850)
GREYS = (0, 63, 126, 189, 252)


@dataclass(frozen=True)
class Layout:
    """A miniature and what must come out: cases of each part, patients, label values."""

    make: Callable[[Path], object]
    training: int
    patients: int
    values: int
    test: int = 0


def mmwhs(kind: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for n in (1001, 1002, 1003):
            folder = root / (f"{kind}_train" if n < 1003 else f"B {kind}_train")
            write(folder / f"{kind}_train_{n}_image.nii.gz", intensities(n))
            write(folder / f"{kind}_train_{n}_label.nii.gz", values_in(SEVEN))
        write(root / f"{kind}_test" / f"{kind}_test_2001_image.nii.gz", intensities(9))
        other = "mr" if kind == "ct" else "ct"
        write(root / f"{other}_train" / f"{other}_train_1001_image.nii.gz", intensities(8))

    return make


def stacom(root: Path) -> None:
    """Slice numbers do not follow the anatomy; the smallest cavity is in phase 2."""
    order = (2, 0, 1)
    for p in range(1, 5):
        name, where = f"DET000010{p}", root / f"DET000010{p}"
        for phase in range(3):
            for k in range(3):
                stem = f"{name}_SA{order[k]}_ph{phase}"
                place = [(0.0, 0.0, 8.0 * k)]
                ending = "DCM" if p == 2 else "dcm"
                slices = intensities(100 * p + 10 * phase + k)[:1]
                dicom(where, slices, f"{stem}.{ending}", place)
                ring = np.full(SHAPE[1:], 0)
                ring[1:-1, 1:-1] = 255
                ring[2 + (phase == 2) : -2, 2:-2] = 0
                if p < 4:
                    pictures(where, ring[None], [f"{stem}.png"])
        dicom(where, intensities(5)[:1], f"{name}_LA1_ph0.dcm", [(0.0, 0.0, 0.0)])


def mnms(root: Path) -> None:
    """Cines; labels are drawn in two frames, which the table counts from 0."""
    lines = [",External code,VendorName,Vendor,Centre,ED,ES,Pathology"]
    for n, where in enumerate(
        ("Training/Labeled", "Training/Labeled", "Training/Unlabeled", "Validation", "Testing")
    ):
        name, drawn = f"A0S9V{n}", where != "Training/Unlabeled"
        frames = np.stack([intensities(10 * n + t) for t in range(4)])
        write(root / where / name / f"{name}_sa.nii.gz", frames)
        labels = np.zeros(frames.shape, np.int16)
        if drawn:
            labels[0] = labels[2] = values_in((0, 1, 2, 3))
            write(root / where / name / f"{name}_sa_gt.nii.gz", labels)
        lines.append(f"{n},{name},Siemens,A,1,{0},{2 * drawn},NOR")
    (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text(
        "\n".join(lines), encoding="utf-8-sig"
    )


def stacom_export(root: Path) -> None:
    for n in (1, 2, 3):
        frames = np.stack([intensities(10 * n + t) for t in range(3)])
        write(root / f"{n:02d}" / "img.nii.gz", frames)
        write(root / f"{n:02d}" / "seg.nii.gz", np.stack([values_in((0, 1, 2, 3, 4))] * 3))


def freesurfer(root: Path) -> None:
    for n in (1, 2, 3):
        home = root / "Outputs" / "freesurfer" / "5.1" / f"Caltech_005145{n}" / "mri"
        mgz(home / "T1.mgz", intensities(n).astype(np.float32))
        mgz(home / "aparc+aseg.mgz", values_in(ASEG, kind=np.int32))


def abide_images(root: Path) -> None:
    for n in (1, 2, 3):
        write(
            root / "Caltech" / f"5145{n}" / "session_1" / "anat_1" / "mprage.nii.gz", intensities(n)
        )


def hcp(root: Path) -> None:
    for n in (100307, 100408, 101006):
        write(root / str(n) / "T1w" / "T1w_acpc_dc_restore_brain.nii.gz", intensities(n))
        write(root / str(n) / "T1w" / "aparc+aseg.nii.gz", values_in(ASEG, kind=np.int32))


def decathlon(root: Path) -> None:
    """Prostate: both channels in one 4D file, resource files of a Mac."""
    training = []
    for n in range(3):
        name = f"prostate_{n:02d}.nii.gz"
        write(root / "imagesTr" / name, np.stack([intensities(n), intensities(50 + n)]))
        (root / "imagesTr" / f"._{name}").write_bytes(b"resource")
        write(root / "labelsTr" / name, values_in((0, 1, 2)), np.eye(3).ravel())
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    write(root / "imagesTs" / "prostate_03.nii.gz", np.stack([intensities(7), intensities(8)]))
    content = {"name": "PROSTATE", "modality": {"0": "T2", "1": "ADC"}, "training": training}
    content |= {"labels": {"0": "background", "1": "PZ", "2": "TZ"}, "numTraining": 3}
    (root / "dataset.json").write_text(json.dumps(content))


def chaos_ct(root: Path) -> None:
    for n in (1, 2, 5):
        home = root / "Train_Sets" / "CT" / str(n)
        dicom(home / "DICOM_anon", intensities(n), "i{:04d},0000b.dcm", series="1.2.{}")
        mask = values_in((0, 255))
        pictures(home / "Ground", mask[::-1], [f"liver_GT_{k:03d}.png" for k in range(5)])
    dicom(root / "Test_Sets" / "CT" / "3" / "DICOM_anon", intensities(3))


def chaos_mr(root: Path) -> None:
    """In and out of phase interleave; one Ground folder for both, named after the first."""
    for n in (1, 2, 5):
        home = root / "Train_Sets" / "MR" / str(n)
        dual, spir = home / "T1DUAL", home / "T2SPIR"
        masks = values_in(GREYS)
        for phase, first in (("InPhase", 2), ("OutPhase", 1)):
            dicom(dual / "DICOM_anon" / phase, intensities(n + first), first=first, step=2)
        names = [f"IMG-0004-{2 + 2 * k:05d}.png" for k in range(5)]
        pictures(dual / "Ground", masks[::-1], names)
        dicom(spir / "DICOM_anon", intensities(30 + n))
        pictures(spir / "Ground", masks[::-1], [f"IMG-0004-{1 + k:05d}.png" for k in range(5)])
    for phase in ("InPhase", "OutPhase"):
        dicom(root / "Test_Sets" / "MR" / "3" / "T1DUAL" / "DICOM_anon" / phase, intensities(3))


def brats(root: Path) -> None:
    ids = ["HGG/Brats18_2013_2_1", "LGG/Brats18_TCIA09_1_1", "HGG/Brats18_CBICA_AAB_1"]
    for n, each in enumerate([*ids, "Validation/Brats18_CBICA_AAM_1"]):
        ending = ".nii" if n == 1 else ".nii.gz"
        stem = root / each / Path(each).name
        for channel, name in enumerate(("t1", "t1ce", "t2", "flair")):
            write(Path(f"{stem}_{name}{ending}"), intensities(10 * n + channel))
        if n < 3:
            write(Path(f"{stem}_seg{ending}"), values_in((0, 1, 2, 4)))
    home = root / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_355"
    for channel, name in enumerate(("t1", "t1ce", "t2", "flair")):
        write(home / f"{home.name}_{name}.nii", intensities(70 + channel))
    write(home / "W39_1998.09.19_Segm.nii", values_in((0, 1, 2, 4)))


def brats_later(root: Path) -> None:
    for n, each in enumerate(("00000-000", "00000-001", "00002-000", "00003-000")):
        stem = root / f"BraTS-GLI-{each}" / f"BraTS-GLI-{each}"
        for channel, name in enumerate(("t1n", "t1c", "t2w", "t2f")):
            write(Path(f"{stem}-{name}.nii.gz"), intensities(10 * n + channel))
        write(Path(f"{stem}-seg.nii.gz"), values_in((0, 1, 2, 3)))


def lits(root: Path) -> None:
    """The split layout; one label has lost the geometry of its image."""
    for part, n in (("train", 0), ("train", 1), ("val", 28)):
        write(root / part / "ct" / f"volume-{n}.nii", intensities(n))
        geometry = {"origin": (0.0, 0.0, 0.0)} if n == 28 else {}
        write(root / part / "seg" / f"segmentation-{n}.nii", values_in((0, 1, 2)), **geometry)
    write(root / "test" / "test-volume-0.nii", intensities(99))


def luna(root: Path) -> None:
    for n in (1, 2, 3):
        uid = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{n}"
        write(root / f"subset{n}" / f"{uid}.mhd", intensities(n))
        write(root / "seg-lungs-LUNA16" / f"{uid}.mhd", values_in((0, 3, 4, 5)))


def lidc(root: Path) -> None:
    for n in (1, 2, 3):
        study = root / f"LIDC-IDRI-000{n}" / "1.3.6.1.4"
        dicom(study / f"1.3.6.{n}", intensities(n), "1-{:03d}.dcm")
        dicom(root / f"LIDC-IDRI-000{n}" / "1.9" / "1.9.1", intensities(n)[:1], modality="DX")
        label = sitk.GetImageFromArray(values_in((0, 1)))
        label.SetSpacing((1.5, 1.25, 3.0))
        label.SetOrigin((-50.0, -60.0, -20.0))
        sitk.WriteImage(label, str(study / f"1.3.6.{n}_nodules.nii.gz"))


def biobank(root: Path) -> None:
    for n in (1000011, 1000022, 1000033):
        t1 = root / f"{n}_20252_2_0" / "T1"
        write(t1 / "T1.nii.gz", intensities(n))
        write(t1 / "T1_fast" / "T1_brain_seg.nii.gz", values_in((0, 1, 2, 3)))
        flair = root / f"{n}_20253_2_0" / "T2_FLAIR"
        write(flair / "T2_FLAIR.nii.gz", intensities(n + 1))


def retina(root: Path) -> None:
    for n in (10, 13, 15):
        for eye in ("left", "right"):
            photograph(root / "train" / f"{n}_{eye}.jpeg", n)
    photograph(root / "train" / "000c1434d8d7.png", 5)
    photograph(root / "test" / "1_left.jpeg", 6)


def kits(root: Path) -> None:
    for n in (0, 1, 2):
        home = root / "dataset" / f"case_0000{n}"
        write(home / "imaging.nii.gz", intensities(n))
        write(home / "segmentation.nii.gz", values_in((0, 1, 2, 3)))
        write(home / "instances" / "tumor_instance-1_annotation-1.nii.gz", values_in((0, 1)))


def amos(root: Path) -> None:
    """CT below number 500, MR from there on; validation cases have labels."""
    for part, number in (("Tr", 1), ("Va", 8), ("Tr", 507), ("Va", 540), ("Ts", 2), ("Ts", 541)):
        name = f"amos_{number:04d}.nii.gz"
        write(root / "amos22" / f"images{part}" / name, intensities(number))
        if part != "Ts":
            write(root / "amos22" / f"labels{part}" / name, values_in(range(16)))


def flare(root: Path) -> None:
    for n in (1, 2, 3):
        write(root / "images" / f"FLARE22_Tr_000{n}_0000.nii.gz", intensities(n))
        write(root / "labels" / f"FLARE22_Tr_000{n}.nii.gz", values_in(range(14)))


def autopet(root: Path) -> None:
    """Two visits of the first patient; the CT on its own grid is passed over."""
    for patient, study in (("a1", "1"), ("a1", "2"), ("b2", "1")):
        home = root / f"PETCT_{patient}" / f"0{study}-23-2003-NA-PET-CT Ganz KM-1"
        for name in ("CTres", "SUV"):
            write(home / f"{name}.nii.gz", intensities(ord(patient[0]) * int(study) + len(name)))
        write(home / "SEG.nii.gz", values_in((0, 1)))
        write(home / "CT.nii.gz", intensities(1, (9, 8, 7)))


def brats_after_treatment(root: Path) -> None:
    for n, each in enumerate(("00005-100", "00005-101", "00006-100", "00008-100")):
        stem = root / "training_data1_v2" / f"BraTS-GLI-{each}" / f"BraTS-GLI-{each}"
        for channel, name in enumerate(("t1n", "t1c", "t2w", "t2f")):
            write(Path(f"{stem}-{name}.nii.gz"), intensities(10 * n + channel))
        write(Path(f"{stem}-seg.nii.gz"), values_in((0, 1, 2, 3, 4)))


def total_segmentator(kind: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for n in (0, 1, 2):
            home = root / f"s000{n}"
            write(home / f"{kind}.nii.gz", intensities(n))
            for value, name in enumerate(("adrenal_gland_left", "aorta", "spleen"), 1):
                mask = (values_in(range(4)) == value).astype(np.uint8)
                write(home / "segmentations" / f"{name}.nii.gz", mask)

    return make


def first_nnunet(root: Path) -> None:
    training = []
    for n in (1, 2, 3):
        for channel in range(2):
            write(root / "imagesTr" / f"x_{n}_{channel:04d}.nii.gz", intensities(10 * n + channel))
        write(root / "labelsTr" / f"x_{n}.nii.gz", values_in((0, 1, 2)))
        training.append({"image": f"./imagesTr/x_{n}.nii.gz", "label": f"./labelsTr/x_{n}.nii.gz"})
    for channel in range(2):
        write(root / "imagesTs" / f"x_9_{channel:04d}.nii.gz", intensities(90 + channel))
    content = {"name": "X", "modality": {"0": "T1", "1": "FLAIR"}, "training": training}
    content |= {"labels": {"0": "background", "1": "A", "2": "B"}, "test": [], "numTraining": 3}
    (root / "dataset.json").write_text(json.dumps(content))


LAYOUTS = {
    "MMWHS_CT": Layout(mmwhs("ct"), 3, 3, 8, test=1),
    "MMWHS_MR": Layout(mmwhs("mr"), 3, 3, 8, test=1),
    "STACOM_LV": Layout(stacom, 6, 3, 2, test=1),
    "MnMs": Layout(mnms, 6, 3, 4, test=2),
    "STACOM_LV_4D": Layout(stacom_export, 3, 3, 4),
    "ABIDE": Layout(freesurfer, 3, 3, 15),
    "ABIDE_images": Layout(abide_images, 3, 3, 2),
    "HCP": Layout(hcp, 3, 3, 15),
    "Decathlon": Layout(decathlon, 3, 3, 3, test=1),
    "CHAOS_CT": Layout(chaos_ct, 3, 3, 2, test=1),
    "CHAOS_MR": Layout(chaos_mr, 9, 3, 5, test=2),
    "CHAOS_T1": Layout(chaos_mr, 3, 3, 5, test=1),
    "BraTS2018": Layout(brats, 4, 4, 4, test=1),
    "BraTS2023": Layout(brats_later, 4, 3, 4),
    "LiTS17": Layout(lits, 3, 3, 3, test=1),
    "LUNA16": Layout(luna, 3, 3, 2),
    "LUNA16_lungs": Layout(luna, 3, 3, 2),
    "LIDC": Layout(lidc, 3, 3, 2),
    "UKBiobank_brain": Layout(biobank, 3, 3, 4),
    "UKBiobank_brain_FLAIR": Layout(biobank, 3, 3, 4),
    "KiTS23": Layout(kits, 3, 3, 4),
    "AMOS22_CT": Layout(amos, 2, 2, 16, test=1),
    "AMOS22_MR": Layout(amos, 2, 2, 16, test=1),
    "FLARE22": Layout(flare, 3, 3, 14),
    "AutoPET": Layout(autopet, 3, 2, 2),
    "BraTS2024": Layout(brats_after_treatment, 4, 3, 5),
    "TotalSegmentator": Layout(total_segmentator("ct"), 3, 3, 4),
    "TotalSegmentator_MR": Layout(total_segmentator("mri"), 3, 3, 4),
    "nnUNet_v1": Layout(first_nnunet, 3, 3, 3, test=1),
    "Retinopathy": Layout(retina, 7, 4, 2, test=1),
}
