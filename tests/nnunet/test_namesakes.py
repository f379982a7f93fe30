"""Cases that look like parts of one patient are found, and common beginnings are not."""

from __future__ import annotations

import hashlib
import json

import pytest

from nnssl.nnunet.namesakes import describe_parts, guess_patients

PARTS = {
    "frames": (
        [f"patient{p:03d}_frame{f:02d}" for p in range(9) for f in (1, p + 5)],
        "patient000",
    ),
    "cine": ([f"patient{p:03d}_frame{f:02d}" for p in range(70) for f in range(30)], "patient000"),
    "phases": ([f"case{p}_{x}" for p in range(9) for x in ("ED", "ES")], "case0"),
    "times": ([f"s{p:04d}_t{t}" for p in range(9) for t in (1, 2)], "s0000"),
    "mixed names": ([f"{c}_{x}" for c in ("A0S9V9", "B1C2D3") for x in ("ED", "ES")], "A0S9V9"),
    "people": (["Müller 1", "Müller 2", "Schmidt 1", "Meier 1"], "Müller"),
    "people_": (["Mueller1", "Mueller2", "Schmidt1"], "Mueller"),
    "sessions": ([f"sub-{p}_ses-{s}_T1w" for p in range(9) for s in (1, 2)], "sub-0"),
    "modalities": ([f"pat{p}_{m}" for p in range(9) for m in ("CT", "MR")], "pat0"),
    "a few": ([f"B-{p:05d}-000" for p in range(40)] + ["B-00000-001", "B-00003-001"] * 2, None),
}
WHOLE = {
    "numbered": [f"la_{p:03d}" for p in range(20)],
    "numbers": [f"{p:03d}" for p in range(20)],
    "letters": [f"s{p:04d}" for p in range(200)],
    "sites": [f"site{s}_{p:03d}" for s in "ABC" for p in range(40)],
    "uneven": [f"BraTS19_CBICA_A{p}_1" for p in range(90)]
    + [f"BraTS19_TCIA{t:02d}_{t}{p:02d}_1" for t in range(9) for p in range(15)],
    "modality": [f"IXI{p:03d}-{('Guys', 'HH')[p % 2]}-{700 + p:04d}-T1" for p in range(90)],
    "hashes": [hashlib.md5(str(p).encode()).hexdigest()[:12] for p in range(100)],
    "one": ["x_1"],
    "none": [],
}


@pytest.mark.parametrize(("names", "first"), PARTS.values(), ids=PARTS)
def test_parts_of_patients_are_grouped(names, first):
    found = guess_patients(names)
    if first is None:  # two of forty came twice: too few to say
        assert not found
        return
    assert first in found
    assert len(found[first]) > 1
    assert sorted(case for cases in found.values() for case in cases) == sorted(names)


@pytest.mark.parametrize("names", WHOLE.values(), ids=WHOLE)
def test_common_beginnings_are_no_patients(names):
    assert guess_patients(names) == {}


def test_the_warning_names_groups_folds_and_the_command(tmp_path):
    names, dataset = PARTS["frames"][0], tmp_path / "Dataset030_Hand"
    text = describe_parts(dataset, names, validation=names[:3])
    assert "18 cases look like parts of 9 patients" in text
    assert "patient000: patient000_frame01, patient000_frame05" in text
    assert "1 of them are in training and in validation" in text
    assert text.endswith("nnssl_cases -d 30 --patient '(.+)_'")
    assert describe_parts(dataset, WHOLE["sites"]) == ""
    (dataset / "nnssl").mkdir(parents=True)
    entries = {name: {"patient": name, "dataset": "Hand"} for name in names}
    (dataset / "nnssl" / "cases.json").write_text(json.dumps({"cases": entries}))
    assert describe_parts(dataset, names) == ""
