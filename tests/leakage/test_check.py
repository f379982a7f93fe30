"""Contamination: each way of seeing evaluation images in pre-training is found and said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nnssl.common.files import write_json
from nnssl.leakage import overlaps
from nnssl.leakage.check import Contamination, Evaluation
from nnssl.leakage.check import check as check_seen
from nnssl.leakage.overlaps import find_overlaps
from nnssl.leakage.seen import Seen

PLANS = "plans_2d"
TRAIN, VAL = ["p1_a", "p1_b", "p2_a"], ["p3_a", "p3_b", "p4_a"]


def make_dataset(
    root: Path, name: str, cases: list[str], origin: str, first_seed: int = 0, known: bool = True
) -> Path:
    """A preprocessed dataset: each case a random image of its own; patient = before the `_`."""
    folder = root / name
    (folder / PLANS).mkdir(parents=True)
    for seed, case in enumerate(cases, first_seed):
        noise = np.random.default_rng(seed).normal(size=(8, 32, 32))
        image = ndimage.gaussian_filter(noise, (1, 2, 2))[None].astype(np.float32)
        np.save(folder / PLANS / f"{case}.npy", image)
    if known:
        records = {case: {"patient": case.split("_")[0], "dataset": origin} for case in cases}
        write_json(folder / "nnssl" / "cases.json", {"cases": records})
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    made = make_dataset(tmp_path, "Dataset001_Made", [*TRAIN, *VAL], "Made")
    return made


def check(own: dict, dataset: Path, fold: int, validation=None, content=True) -> Contamination:
    """Of fold 0, which validates on VAL, or fold 1, which validates on TRAIN."""
    cases = validation or (TRAIN if fold else VAL)
    evaluation = Evaluation(dataset, fold, cases, dataset / PLANS)
    return check_seen(Seen.of(own, dataset.parent), evaluation, "all" if content else "none")


def source(dataset: str = "Dataset001_Made", seen=TRAIN, fold: int | str = 0) -> dict:
    configurations = {"2d": {"data_identifier": PLANS}, "own": {"inherits_from": "2d"}}
    return {
        "kind": "pretrain",
        "dataset": dataset,
        "fold": fold,
        "configuration": "own",
        "plans": {"configurations": configurations},
        "cases": {"train": list(seen), "left_out": []},
    }


def verdicts(found: Contamination) -> dict[str, str]:
    return {finding.by: finding.verdict for finding in found.findings}


def finding(found: Contamination, by: str):
    return next(each for each in found.findings if each.by == by)


def test_pretraining_on_the_same_fold_is_clean(dataset):
    found = check(source(), dataset, 0)
    assert verdicts(found) == {"patient": "clean", "dataset": "clean", "content": "clean"}
    assert found.contaminated is False
    assert "None of the 2 patients evaluated is among the 2 seen" in finding(found, "patient").text


def test_another_fold_is_contaminated_by_patient_and_content(dataset):
    found = check(source(), dataset, 1)
    assert found.contaminated is True
    assert finding(found, "patient").cases == tuple(TRAIN)
    assert set(finding(found, "content").cases) == set(TRAIN)


def test_another_case_of_a_seen_patient_is_enough(dataset):
    found = check(source(seen=[*TRAIN, "p3_b"]), dataset, 0)
    assert finding(found, "patient").cases == ("p3_a", "p3_b")
    assert finding(found, "content").cases == ("p3_b",)


def test_fold_all_is_contaminated_even_without_reading_images(dataset):
    found = check(source(seen=[*TRAIN, *VAL], fold="all"), dataset, 0, content=False)
    assert verdicts(found)["fold"] == "contaminated"
    assert finding(found, "patient").cases == tuple(VAL)
    assert "content" not in verdicts(found)


def test_a_copy_under_another_patients_name_is_found_by_content_only(dataset):
    image = np.load(dataset / PLANS / "p4_a.npy")
    np.save(dataset / PLANS / "p2_a.npy", 3 * image + 1)
    found = check(source(), dataset, 0)
    assert verdicts(found) == {"patient": "clean", "dataset": "clean", "content": "contaminated"}
    assert finding(found, "content").cases == ("p4_a",)
    assert "p4_a = p2_a (1.00)" in finding(found, "content").text


def test_a_mirrored_copy_in_another_dataset_is_found(dataset, tmp_path):
    pool = make_dataset(tmp_path, "Dataset009_Pool", ["x1", "x2"], "Pool", first_seed=50)
    image = np.load(dataset / PLANS / "p3_b.npy")
    np.save(pool / PLANS / "x2.npy", image[:, :, ::-1])
    found = check(source("Dataset009_Pool", ["x1", "x2"], "all"), dataset, 0)
    assert verdicts(found) == {"patient": "clean", "dataset": "clean", "content": "contaminated"}
    assert finding(found, "content").cases == ("p3_b",)


def test_other_people_of_one_template_are_no_proof_and_never_clean(tmp_path):
    """Registered brains without skulls: other people resemble each other beyond the threshold."""

    def draw(folder: Path, name: str, seed: int) -> None:
        noise = (np.random.default_rng(each).normal(size=(8, 32, 32)) for each in (999, seed))
        shared, own = (ndimage.gaussian_filter(each, (1, 2, 2)) for each in noise)
        np.save(folder / PLANS / f"{name}.npy", (shared + 0.45 * own)[None].astype(np.float32))

    cases = [f"p{n}_a" for n in range(6)]
    brains = make_dataset(tmp_path, "Dataset001_Brains", cases, "Brains")
    other = make_dataset(tmp_path, "Dataset009_Other", ["x_1", "y_1"], "Other")
    for n, case in enumerate(cases):
        draw(brains, case, n)
    draw(other, "x_1", 100)
    draw(other, "y_1", 101)
    own = source("Dataset009_Other", ["x_1", "y_1"])
    found = check(own, brains, 0, validation=cases)
    assert finding(found, "content").verdict == "unknown"
    assert "or other people" in finding(found, "content").text
    draw(other, "y_1", 4)
    found = check(own, brains, 0, validation=cases)
    assert finding(found, "content").verdict == "contaminated"
    assert finding(found, "content").cases == ("p4_a",)


def test_a_pool_that_holds_the_same_dataset_is_compared_by_patient(dataset, tmp_path):
    make_dataset(tmp_path, "Dataset009_Pool", ["p3_z", "p9_z"], "Made", first_seed=50)
    seen = ["p3_z", "p9_z"]
    found = check(source("Dataset009_Pool", seen), dataset, 0, content=False)
    assert finding(found, "patient").cases == ("p3_a", "p3_b")


def test_a_known_overlap_is_possible_and_not_proven(dataset, tmp_path):
    make_dataset(tmp_path, "Dataset009_Lits", ["v1"], "LiTS17", first_seed=50)
    liver = make_dataset(tmp_path, "Dataset003_Liver", ["liver_1"], "Task03_Liver", first_seed=60)
    found = check(source("Dataset009_Lits", ["v1"]), liver, 0, validation=["liver_1"])
    assert verdicts(found) == {"patient": "clean", "dataset": "possible", "content": "clean"}
    assert found.contaminated is None
    assert "arXiv:1901.04056" in finding(found, "dataset").text


def test_what_cannot_be_told_is_said(dataset, tmp_path):
    stock = check({}, dataset, 0)
    assert verdicts(stock) == {"source": "unknown"}
    assert stock.contaminated is None
    gone = check(source("Dataset077_Gone", ["a"]), dataset, 0)
    assert verdicts(gone)["content"] == "unknown"
    assert verdicts(gone)["patient"] == "unknown"
    lost = check(source(seen=["p9_a"]), dataset, 0, content=False)
    assert "p9_a" in finding(lost, "patient").text
    make_dataset(tmp_path, "Dataset005_Plain", ["c1", "c2"], "Plain", 70, known=False)
    plain = tmp_path / "Dataset005_Plain"
    found = check(source("Dataset005_Plain", ["c1"]), plain, 0, validation=["c2"])
    assert verdicts(found)["patient"] == "unknown"
    assert "patient of its own" in finding(found, "patient").text


def test_a_dataset_is_its_whole_name_where_nothing_says_whose_the_cases_are(tmp_path):
    name = "Dataset002_Two_Sites"
    seen = Seen.of(source(name, seen=["a1", "a2"]), tmp_path)
    assert seen.keys == {"a1": ("Two_Sites", "a1"), "a2": ("Two_Sites", "a2")}
    assert seen.origins == {"Two_Sites"}


def test_the_report_is_plain_and_nothing_lands_among_the_images(dataset):
    found = check(source(), dataset, 1).to_dict()
    assert found["contaminated"] is True
    assert found["findings"][0]["cases"] == TRAIN
    write_json(dataset / "report.json", found)
    assert {path.suffix for path in (dataset / PLANS).iterdir()} == {".npy"}
    assert (dataset / "nnssl" / PLANS / "thumbnails.npz").is_file()


@pytest.mark.parametrize(
    ("seen", "evaluated", "what"),
    [
        ("LUNA16", "LIDC", "888 scans"),
        ("lidc-idri", "LUNA16_lungs", "888 scans"),
        ("BraTS2017", "Task01_BrainTumour", "renamed"),
        ("LUNA", "LUNA16", "two names of one dataset"),
        ("ABIDE", "ABIDE_images", "two names of one dataset"),
    ],
)
def test_the_table_knows_names_in_any_order_and_spelling(seen, evaluated, what):
    for pair in ((seen, evaluated), (evaluated, seen)):
        (found,) = find_overlaps([pair[0]], [pair[1]])
        assert what in found.what
        assert (found.seen, found.evaluated) == pair


def test_the_table_knows_no_overlap_of_a_dataset_with_itself_or_strangers():
    assert find_overlaps(["ACDC", "LiTS"], ["ACDC", "KiTS19", "LiTS"]) == []


def test_every_entry_of_the_table_has_a_source():
    names, table = overlaps._read_table(overlaps.FILE)
    assert len(table) >= 10
    for pair, (what, says) in table.items():
        assert len(pair) == 2
        assert pair <= set(names.values())
        assert what
        assert says


def test_a_broken_table_is_named(tmp_path):
    file = tmp_path / "overlaps.yaml"
    file.write_text("names: {A: []}\noverlaps: [{between: [A, B], what: x, source: y}]\n")
    with pytest.raises(ValueError, match=r"overlaps\.yaml: .*'b'"):
        find_overlaps(["A"], ["B"], file)
