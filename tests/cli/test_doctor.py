"""`nnssl_doctor` tells in one table what is missing and what to do."""

from __future__ import annotations

import sys
from collections import namedtuple

import pytest

from nnssl.cli import doctor
from nnssl.nnunet import registration

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def healthy(tmp_path, monkeypatch):
    """An environment in which nothing stops a training."""
    for name in doctor.FOLDERS:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("nnssl_configs", "nnUNet_n_proc_DA", "nnUNet_extTrainer"):
        monkeypatch.delenv(name, raising=False)
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    registration.register(trainers)
    monkeypatch.setattr(registration, "trainer_folder", lambda: trainers)
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path


def findings():
    return {finding.item: finding for finding in doctor.examine()}


def test_a_healthy_environment(healthy, capsys):
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    for item in ("nnunetv2", "torch", "$nnUNet_raw", "registration", "workers", "CPU cores"):
        assert any(line.startswith(item) for line in output.splitlines()), item
    assert "\n0 problems" in output


def test_every_variable_and_package_is_told(healthy):
    items = findings()
    assert {f"${name}" for name in (*doctor.FOLDERS, *doctor.OPTIONAL)} <= set(items)
    assert set(doctor.PACKAGES) <= set(items)


@pytest.mark.parametrize("name", doctor.FOLDERS)
def test_a_variable_that_is_not_set(healthy, monkeypatch, capsys, name):
    monkeypatch.delenv(name)
    assert doctor.main([]) == 1
    assert f"export {name}=<folder>" in capsys.readouterr().out


def test_a_folder_that_does_not_exist(healthy, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(healthy / "gone"))
    finding = findings()["$nnUNet_raw"]
    assert finding.verdict == "problem"
    assert finding.advice == f"mkdir -p {healthy / 'gone'}"


def test_a_folder_that_is_not_writable(healthy, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert findings()["$nnUNet_results"].verdict == "warning"


def test_not_registered(healthy):
    registration.undo(healthy / "trainers")
    finding = findings()["registration"]
    assert (finding.verdict, finding.advice) == ("problem", "run nnssl_register")


def test_registered_by_the_variable(healthy, monkeypatch):
    registration.undo(healthy / "trainers")
    monkeypatch.setattr(registration, "nnunet_version", lambda: "2.8.1")
    monkeypatch.setenv("nnUNet_extTrainer", str(registration.EXTERNAL_FOLDER))
    assert findings()["registration"].verdict == "ok"
    monkeypatch.setattr(registration, "nnunet_version", lambda: "2.7.0")
    assert findings()["registration"].verdict == "problem"


def test_an_unsupported_nnunet(healthy, monkeypatch):
    monkeypatch.setattr(registration, "nnunet_version", lambda: "2.5.2")
    finding = findings()["nnunetv2"]
    assert (finding.value, finding.verdict) == ("2.5.2", "problem")


def test_a_missing_package(healthy, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package-here",))
    assert findings()["no-such-package-here"].verdict == "problem"


def test_a_broken_trainer_file(healthy, monkeypatch):
    (healthy / "nnSSLBroken.yaml").write_text("kind: [\n")
    monkeypatch.setenv("nnssl_configs", str(healthy))
    assert "nnSSLBroken.yaml, line 2" in findings()["trainers"].advice


def test_the_other_project_of_the_same_import_name(healthy, monkeypatch):
    assert "import name nnssl" not in findings()
    (healthy / "other" / doctor.OTHER_PROJECT).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(healthy / "other")])
    finding = findings()["import name nnssl"]
    assert finding.verdict == "problem"
    assert str(healthy / "other" / "nnssl") in finding.value


def test_no_workers_is_a_warning(healthy, monkeypatch):
    """The training works without, but nnU-Net 2.8's planner does not."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    found = findings()["workers"]
    assert found.verdict == "warning"
    assert "planner" in found.advice


def test_workers(healthy, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert findings()["workers"].value.startswith("1 ($nnUNet_n_proc_DA)")
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    assert findings()["$nnUNet_n_proc_DA"].verdict == "problem"
    monkeypatch.setenv("nnUNet_n_proc_DA", "")  # nnU-Net stops at this
    assert findings()["workers"].verdict == "problem"


def test_little_room(healthy, monkeypatch):
    small = Usage(2**26, 0, 2**26)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: small)
    items = findings()
    assert items["  free disk"].verdict == "warning"
    if doctor.SHARED_MEMORY.is_dir():
        assert "--shm-size" in items["shared memory"].advice


def test_datasets_with_unknown_patients_are_listed(tmp_path, monkeypatch):
    for name, cases in (("Dataset030_Hand", ("a1_ED", "a1_ES", "b2_ED")), ("Dataset031_La", "xyz")):
        folder = tmp_path / name / "gt_segmentations"
        folder.mkdir(parents=True)
        for case in cases:
            (folder / f"{case}.nii.gz").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    found = {each.item: each for each in doctor.examine()}
    assert found["Dataset030_Hand"].verdict == "warning"
    assert found["Dataset030_Hand"].advice == "nnssl_cases -d 30 --patient '(.+)_'"
    assert "Dataset031_La" not in found
