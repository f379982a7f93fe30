"""``nnssl_convert`` and ``nnssl_phantom`` as a user meets them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnssl.cli import convert, phantom


@pytest.fixture
def source(tmp_path: Path) -> Path:
    phantom.main([str(tmp_path / "phantom"), "--patients", "2", "--workers", "1"])
    return tmp_path / "phantom"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnssl_configs", raising=False)


def run(*arguments: object) -> None:
    convert.main([str(each) for each in (*arguments, "--workers", 1)])


def test_converts_and_says_what_next(source: Path, tmp_path: Path, capsys):
    run("ACDC", source, "-d", 27)
    out = capsys.readouterr().out
    assert "4 cases of 2 patients" in out
    assert "please cite: O. Bernard" in out
    assert "nnUNetv2_plan_and_preprocess -d 27" in out
    assert len(os.listdir(tmp_path / "raw" / "Dataset027_ACDC" / "imagesTr")) == 4


def test_dry_run_writes_nothing(source: Path, tmp_path: Path, capsys):
    run("ACDC", source, "-d", 27, "--dry-run")
    out = capsys.readouterr().out
    assert "imagesTr/patient001_frame01_0000.nii.gz" in out
    assert "4 cases; nothing was written" in out
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "preprocessed").exists()


def test_list_shows_users_datasets_too(tmp_path: Path, monkeypatch, capsys):
    convert.main(["--list"])
    shown = capsys.readouterr().out
    assert "ACDC" in shown
    assert "CC BY-NC-SA" in shown
    (tmp_path / "mine" / "datasets").mkdir(parents=True)
    installed = Path(convert.find_specs()["ACDC"]).read_text()
    mine = tmp_path / "mine" / "datasets" / "Mine.yaml"
    mine.write_text(installed.replace("name: ACDC", "name: Mine"))
    monkeypatch.setenv(
        "nnssl_configs", os.pathsep.join([str(tmp_path / "none"), str(mine.parents[1])])
    )
    convert.main(["--list"])
    assert "Mine" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nnUNet_raw", "nnUNet_preprocessed"])
def test_unset_variable_is_named(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.delenv(name)
    with pytest.raises(SystemExit, match=f"{name} is not set"):
        run("ACDC", tmp_path, "-d", 27)


def test_mistakes_end_with_one_message(tmp_path: Path):
    with pytest.raises(SystemExit, match="unknown dataset 'ACDD'; did you mean ACDC"):
        run("ACDD", tmp_path, "-d", 27)
    with pytest.raises(SystemExit, match="needs NAME SOURCE -d ID"):
        run("ACDC", tmp_path)
    with pytest.raises(SystemExit, match=r"is not a folder(.|\n)*creatis"):
        run("ACDC", tmp_path / "missing", "-d", 27)


def test_workers_must_be_positive(source: Path):
    with pytest.raises(SystemExit, match="workers is 0; it must be at least 1"):
        convert.main(["ACDC", str(source), "-d", "27", "--workers", "0"])


def test_the_phantom_does_not_overwrite(source: Path):
    with pytest.raises(SystemExit, match="not empty"):
        phantom.main([str(source)])
