"""Parts of the probe: label maps, voxels for fitting, Dice, draws, positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.data.case_table import Case
from nnssl.data.labels import LabelBudget, choose_labelled
from nnssl.nnunet.cases import CaseRecord
from nnssl.probe import volumes as probe_volumes
from nnssl.probe.encoders import isolate_generators
from nnssl.probe.fold import ProbeFold
from nnssl.probe.linear_probe import DiceTable, compute_dice, weigh_classes
from nnssl.probe.slices import Slices
from nnssl.probe.volumes import Volumes, read_structures


def volumes(folder: Path, labels: dict[str, Any]) -> Volumes:
    return Volumes(folder, read_structures({"labels": labels}), torch.device("cpu"))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "a": 1, "b": 5}, {1: "a", 5: "b"}),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "c": [3], "ignore": 4},
         {1: "label 1", 2: "label 2", 3: "c"}),
        ({"background": 0, "c": 3, "whole": [1, 3]}, {1: "label 1", 3: "c"}),
        ({"background": 0}, {}),
    ],
)  # fmt: skip
def test_structures(labels: dict[str, Any], expected: dict[int, str]) -> None:
    assert read_structures({"labels": labels}) == expected


def test_left_out_voxels(tmp_path: Path) -> None:
    """Ignore label, -1 and integers that dataset.json does not name."""
    raw = np.array([-1, 0, 1, 2, 3, 9, 4, 0], np.int16).reshape(1, 2, 2, 2)
    np.save(tmp_path / "c_seg.npy", raw)
    np.savez(tmp_path / "old.npz", data=raw, seg=raw)
    reader = volumes(tmp_path, {"background": 0, "a": 1, "b": 3, "ignore": 4})
    for case in ("c", "old"):
        assert reader.read_labels(case).flatten().tolist() == [-1, 0, 1, -1, 2, -1, -1, 0]
    assert reader.explain_missing_labels(["c", "old"]) is None
    assert "1 cases have no segmentation file" in str(reader.explain_missing_labels(["c", "d"]))
    (tmp_path / "bad_seg.b2nd").write_bytes(b"garbage")
    with pytest.raises(RuntimeError, match="case bad: its segmentation"):
        reader.read_labels("bad")


def test_voxels_for_fitting_are_bounded_valid_and_repeatable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe_volumes, "VOXELS", 20)
    labels = torch.zeros(4, 10, 10, dtype=torch.long)
    labels[:, :5] = -1
    labels[1, 7, :7] = 2
    voxels, classes = probe_volumes.choose_voxels(labels, "case")
    assert torch.bincount(classes).tolist() == [20, 0, 7]
    assert torch.equal(labels[tuple(voxels.T)], classes)
    assert torch.equal(probe_volumes.choose_voxels(labels, "case")[0], voxels)
    assert not torch.equal(probe_volumes.choose_voxels(labels, "other")[0], voxels)


def test_the_background_weighs_as_much_as_all_structures() -> None:
    counts = torch.tensor([100, 10, 0, 40])
    total = weigh_classes(counts) * counts
    assert total[1] == pytest.approx(float(total[3]))
    assert total[0] == pytest.approx(float(total[1] + total[3]))


def test_dice_of_a_confusion() -> None:
    """Rows are labels: structure 1 has 6 true, 5 found, 4 of them right; structure 2 is absent."""
    confusion = torch.tensor([[10, 1, 0], [2, 4, 0], [0, 0, 0]])
    values = compute_dice(confusion)
    assert values[0] == pytest.approx(8 / 11)
    assert values[1].isnan()
    table = DiceTable(("a", "b"), {"x": values[None], "y": torch.tensor([[0.5, 0.2]])})
    assert table.per_structure == pytest.approx({"a": (8 / 11 + 0.5) / 2, "b": 0.2})
    assert table.mean == pytest.approx(((8 / 11 + 0.5) / 2 + 0.2) / 2)


def test_positions_grow_towards_the_head_and_rows_find_their_slice() -> None:
    slices = Slices()
    for number, sign in enumerate((1, -1)):
        case = Case(f"c{number}", number, 0, (8, 6, 6), 0, sign)
        slices.cases.append(case)
        slices.embeddings.append(torch.randn(4, 3))
    assert slices.positions.tolist() == [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]
    assert slices.find_rows(["c1"]).tolist() == [4, 5, 6, 7]
    case, voxel = slices.find_voxel(5)
    assert (case.identifier, voxel) == ("c1", 3)
    assert set(slices.measure(["c1"])) == {"effective_rank", "position_error", "position_chance"}


def test_the_draw_is_that_of_fine_tuning(tiny_dataset: Any) -> None:
    fold = ProbeFold.find("999", "2d", 0, "nnUNetPlans")
    drawn = fold.draw_labelled(2, [3, 4])
    records = {case: CaseRecord(case[:2], "Tiny") for case in fold.train}
    for seed, labelled in zip((3, 4), drawn, strict=True):
        expected = choose_labelled(LabelBudget(patients=2, seed=seed), fold.train, records)
        assert labelled.cases == expected.cases
    assert fold.choose_validation(1, drawn) in (["p0_f0"], ["p0_f1"])
    assert fold.choose_validation(5, drawn) == ["p0_f0", "p0_f1"]


def test_isolated_generators_leave_the_others_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(1)
    np.random.seed(1)
    with isolate_generators(torch.device("cpu")):
        inside = torch.rand(3)
        np.random.rand(7)
    with isolate_generators(torch.device("cpu")):
        assert torch.equal(torch.rand(3), inside)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
