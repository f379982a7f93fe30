from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted_study import DATASET, case, plant, true_dice

from nnssl.studies.analysis.comparisons import compare
from nnssl.studies.analysis.table import CACHE, COLUMNS, collect
from nnssl.studies.report.provenance import learning_curve
from nnssl.studies.run.grid import Cell, cells


def dice(cell: Cell, patient: int) -> float:
    """Scratch misses 2 + patient layers of 8, the method one layer less."""
    return true_dice(2 + patient - (cell.method == "M"))


def test_rows_hold_what_is_known_by_hand(tmp_path: Path) -> None:
    study = plant(tmp_path, dice, repetitions=1)
    table = collect(tmp_path / "study", study, cells(study), workers=1)
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 2 * 6 * 2  # cells, cases, structures
    row = table[
        (table["method"] == "scratch")
        & (table["case"] == case(1, 0))
        & (table["structure"] == "cube")
    ].iloc[0]
    assert row["dice"] == pytest.approx(2 * 5 / 13)  # 3 of 8 layers are missing
    assert row["hd95"] == pytest.approx(3 * 2.0)  # 3 layers of 2 mm
    assert row["patient"] == "p01"
    numbers = [f"labelled_{each}" for each in ("volumes", "slices", "patients")]
    assert list(row[numbers]) == [4, 36, 2]
    never = table[table["structure"] == "never"]
    assert never[["dice", "hd95", "nsd"]].isna().all().all()


def test_missing_cells_have_no_rows_and_no_pair(tmp_path: Path) -> None:
    study = plant(tmp_path, dice, skip={"m-p2-r1-f0-short"})
    table = collect(tmp_path / "study", study, cells(study), workers=1)
    assert "m-p2-r1-f0-short" not in set(table["cell"])
    (found,) = compare(table)
    assert found.runs == ((0, 0), (0, 2))
    expected = sum(true_dice(1 + p) - true_dice(2 + p) for p in range(3)) / 3
    assert found.effect.mean == pytest.approx(expected)


def test_cache_follows_summary_and_tolerance(tmp_path: Path) -> None:
    study = plant(tmp_path, dice, repetitions=1)
    folder, grid = tmp_path / "study", cells(study)
    table = collect(folder, study, grid, workers=1)
    cache = grid[-1].folder(folder) / CACHE
    content = json.loads(cache.read_text())
    content["cases"][case(0, 0)]["1"][0] = 77.0
    cache.write_text(json.dumps(content))
    kept = collect(folder, study, grid, workers=1)
    assert 77.0 in set(kept["hd95"])
    summary = grid[-1].fold_folder(folder, study) / "validation" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()), indent=1))
    assert collect(folder, study, grid, workers=1).equals(table)
    wider = collect(folder, study, grid, tolerance=9.0, workers=1)
    assert wider["nsd"].mean() > table["nsd"].mean()


def test_a_moved_study_finds_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = plant(tmp_path, dice, repetitions=1)
    (tmp_path / "study").rename(tmp_path / "moved")
    (tmp_path / "preprocessed").rename(tmp_path / "elsewhere")
    grid = cells(study)
    with pytest.raises(ValueError, match="set nnUNet_preprocessed"):
        collect(tmp_path / "moved", study, grid, workers=1)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "elsewhere"))
    table = collect(tmp_path / "moved", study, grid, workers=1)
    assert set(table["patient"]) == {"p00", "p01", "p02"}


def test_learning_curve_of_a_log(tmp_path: Path) -> None:
    study = plant(tmp_path, dice, repetitions=1)
    fold = cells(study)[1].fold_folder(tmp_path / "study", study)
    assert fold.parents[1].name == DATASET
    assert learning_curve(fold) == [0.25, 0.5]
