from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted_study import DATASET, case, plant, true_dice

from nnssl.studies.analysis.comparisons import compare
from nnssl.studies.analysis.table import CACHE, COLUMNS, collect_scores
from nnssl.studies.report.provenance import read_learning_curve
from nnssl.studies.run.folder import open_study
from nnssl.studies.run.grid import Cell


def dice(cell: Cell, patient: int) -> float:
    """Scratch misses 2 + patient layers of 8, the method one layer less."""
    return true_dice(2 + patient - (cell.method == "M"))


def test_rows_hold_what_is_known_by_hand(tmp_path: Path) -> None:
    table = collect_scores(plant(tmp_path, dice, repetitions=1), workers=1)
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
    table = collect_scores(plant(tmp_path, dice, skip={"m-p2-r1-f0-short"}), workers=1)
    assert "m-p2-r1-f0-short" not in set(table["cell"])
    (found,) = compare(table)
    assert found.runs == ((0, 0), (0, 2))
    expected = sum(true_dice(1 + p) - true_dice(2 + p) for p in range(3)) / 3
    assert found.effect.mean == pytest.approx(expected)


def test_cache_follows_summary_and_tolerance(tmp_path: Path) -> None:
    folder = plant(tmp_path, dice, repetitions=1)
    table = collect_scores(folder, workers=1)
    cache = folder.cell_folder(folder.cells[-1]) / CACHE
    content = json.loads(cache.read_text())
    content["cases"][case(0, 0)]["1"][0] = 77.0
    cache.write_text(json.dumps(content))
    kept = collect_scores(folder, workers=1)
    assert 77.0 in set(kept["hd95"])
    summary = folder.fold_folder(folder.cells[-1]) / "validation" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()), indent=1))
    assert collect_scores(folder, workers=1).equals(table)
    wider = collect_scores(folder, tolerance=9.0, workers=1)
    assert wider["nsd"].mean() > table["nsd"].mean()


def test_a_moved_study_finds_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, dice, repetitions=1)
    (tmp_path / "study").rename(tmp_path / "moved")
    (tmp_path / "preprocessed").rename(tmp_path / "elsewhere")
    moved = open_study(tmp_path / "moved")
    with pytest.raises(ValueError, match="set nnUNet_preprocessed"):
        collect_scores(moved, workers=1)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "elsewhere"))
    table = collect_scores(moved, workers=1)
    assert set(table["patient"]) == {"p00", "p01", "p02"}


def test_learning_curve_of_a_log(tmp_path: Path) -> None:
    folder = plant(tmp_path, dice, repetitions=1)
    fold = folder.fold_folder(folder.cells[1])
    assert fold.parents[1].name == DATASET
    assert read_learning_curve(fold) == [0.25, 0.5]
