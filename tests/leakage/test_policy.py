"""Weights of a pool and of other datasets: what they may be fine-tuned on."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.common.files import hash_json, read_json
from nnssl.data.copies import make_signatures
from nnssl.data.pool.settings import MARK
from nnssl.data.thumbnails import make_thumbnail
from nnssl.leakage.ancestry import trace_ancestry
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import judge
from nnssl.leakage.pool_check import check_runs
from nnssl.modules.unet import Trained, plain_state_dict, trained_keys
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.paths import Roots
from nnssl.nnunet.splits import read_splits
from nnssl.training.finetuner import nnSSLFinetuner

POOL = "Dataset900_Pool"
SHORT = """
kind: finetune
training: {num_epochs: 1, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1}
labels: {patients: 1}
"""


def write_cases(root: Path, dataset: str, cases: dict[str, tuple[str, str, str]]) -> Path:
    """case -> (patient, dataset of origin, part)."""
    file = root / dataset / "nnssl" / "cases.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    keys = ("patient", "dataset", "part")
    entries = {case: dict(zip(keys, entry, strict=True)) for case, entry in cases.items()}
    file.write_text(json.dumps({"cases": entries}))
    return root / dataset


def own_part(fold=0, train=("027_b",), members=None, dataset=POOL):
    """What a checkpoint of a pool says."""
    mark = {"members": members or {"Dataset027_Heart": ["Heart"]}, "folds": 2}
    return {
        "kind": "pretrain",
        "dataset": dataset,
        "configuration": "2d",
        "fold": fold,
        "cases": {"train": list(train)},
        "plans": {"plans_name": "nnUNetPlans", MARK: {**mark, "splits": {}}},
    }


def judge_source(own, evaluation, seeds=None):
    """Every case is an image of noise of its own; `seeds` gives cases the noise of other cases."""
    own, seeds = deepcopy(own), seeds or {}
    folder = evaluation.dataset / "images"
    folder.mkdir(exist_ok=True)
    for case in evaluation.validation:
        np.save(folder / f"{case}.npy", make_noise(case))
    seen = own.get("cases", {}).get("train", [])
    noise = [make_thumbnail(make_noise(seeds.get(case, f"seen {case}"))) for case in seen]
    if seen:
        own["cases"]["signatures"] = make_signatures(np.stack(noise))
    checkpoint = {"nnssl": own} if own else {}
    return judge(trace_ancestry(checkpoint), replace(evaluation, configuration_folder=folder))


def make_noise(case):
    return np.random.default_rng(list(case.encode())).normal(size=(1, 8, 24, 24))


@pytest.fixture
def heart(tmp_path):
    """Fold 0 of Heart validates on a, fold 1 on b; the pool has both."""
    pooled = {"027_a": ("a", "Heart", "Tr"), "027_b": ("b", "Heart", "Tr")}
    write_cases(tmp_path, POOL, {**pooled, "004_a": ("s", "Brain", "Tr")})
    cases = {"a": ("a", "Heart", "Tr"), "b": ("b", "Heart", "Tr"), "t": ("t", "Heart", "Ts")}
    return write_cases(tmp_path, "Dataset027_Heart", cases)


def test_the_same_fold_of_the_pool_is_honest(heart):
    found = judge_source(own_part(train=["027_b", "004_a"]), Evaluation(heart, 0, ["a"]))
    assert (found.contaminated, found.reasons) == (False, ())
    found.refuse(allowed=False)


def test_another_fold_is_refused_by_fold_and_by_patient(heart):
    found = judge_source(own_part(), Evaluation(heart, 1, ["b"]))
    assert found.contaminated
    assert found.cases == ("b",)
    with pytest.raises(ValueError, match=r"nnUNetv2_train Dataset900_Pool 2d 1 -p nnUNetPlans"):
        found.refuse(allowed=False)
    found.refuse(allowed=True)


@pytest.mark.parametrize("fold", ["all", 1])
def test_the_fold_counts_even_where_no_validation_patient_was_seen(heart, fold):
    assert judge_source(own_part(fold), Evaluation(heart, 0, ["a"])).contaminated


def test_a_patient_counts_in_a_dataset_that_is_no_member(heart, tmp_path):
    other = write_cases(tmp_path, "Dataset028_Copy", {"x": ("b", "Heart", "Tr")})
    found = judge_source(own_part(), Evaluation(other, 1, ["x"]))
    assert (found.contaminated, found.cases) == (True, ("x",))
    stranger = write_cases(tmp_path, "Dataset030_Lung", {"x": ("l", "Lung", "Tr")})
    assert judge_source(own_part(), Evaluation(stranger, 1, ["x"])).contaminated is False


def test_patients_of_one_name_in_two_datasets_cannot_be_told_apart(heart, tmp_path):
    namesake = write_cases(tmp_path, "Dataset029_Lung", {"x": ("b", "Lung", "Tr")})
    found = judge_source(own_part(), Evaluation(namesake, 1, ["x"]))
    assert found.contaminated is None
    assert "have the name of a patient seen in another dataset (b)" in found.warnings[0]
    assert found.record["cannot_be_told"] == list(found.untold)


def test_a_patient_of_imagests_counts(heart, tmp_path):
    write_cases(tmp_path, POOL, {"028_t": ("t", "Heart", "Tr")})
    found = judge_source(own_part(train=["028_t"]), Evaluation(heart, 0, ["a"]))
    assert "1 patients of imagesTs (t)" in found.reasons[0]


def test_without_the_pools_records_the_fold_decides_for_members_only(heart, tmp_path):
    (tmp_path / POOL / "nnssl" / "cases.json").unlink()
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    (heart / "splits_final.json").write_text(json.dumps(splits))
    own = own_part()
    own["plans"][MARK]["splits"] = {heart.name: hash_json(splits)}
    assert judge_source(own, Evaluation(heart, 0, ["a"])).contaminated is False
    own["plans"][MARK]["splits"] = {heart.name: hash_json(splits[::-1])}
    assert "are not those that" in judge_source(own, Evaluation(heart, 0, ["a"])).reasons[0]
    other = write_cases(tmp_path, "Dataset028_Copy", {"x": ("b", "Heart", "Tr")})
    assert "has images of Heart" in judge_source(own, Evaluation(other, 0, ["x"])).reasons[0]


def test_known_overlaps_of_public_datasets_are_refused(tmp_path):
    liver = write_cases(tmp_path, "Dataset003_Liver", {"x": ("1", "MSD Task03_Liver", "Tr")})
    own = own_part(members={"Dataset017_LiTS17": ["LiTS17"]})
    found = judge_source(own, Evaluation(liver, 0, ["x"]))
    assert found.contaminated
    assert "the liver task of the Decathlon is LiTS" in found.reasons[0]
    plain = {**own, "dataset": "Dataset017_LiTS17", "plans": {}}
    assert judge_source(plain, Evaluation(liver, 0, ["x"])).contaminated


def test_a_stock_checkpoint_cannot_be_told(heart):
    assert judge_source({}, Evaluation(heart, 0, ["a"])).contaminated is None


@pytest.fixture
def pool_weights(tiny_dataset):
    """Writes a finished pool run on a fold, and its records, beside the tiny dataset."""

    def write(fold: int) -> Path:
        source = tiny_dataset.trainer(nnUNetTrainer, "2d", 0, continue_training=False)
        source.output_folder = str(tiny_dataset.results)
        source.initialize()
        records = read_json(tiny_dataset.preprocessed / "nnssl" / "cases.json")["cases"]
        splits = read_splits(tiny_dataset.preprocessed / "splits_final.json")
        pooled = {f"999_{c}": (e["patient"], e["dataset"], "Tr") for c, e in records.items()}
        write_cases(tiny_dataset.preprocessed.parent, POOL, pooled)
        train = [f"999_{case}" for case in splits[fold]["train"]]
        own = own_part(fold, train, {tiny_dataset.preprocessed.name: ["Tiny"]})
        own["plans"] |= {"configurations": {}}
        own["trained_keys"] = trained_keys(source.network, Trained())
        file = tiny_dataset.results.parent / f"pool_{fold}.pth"
        weights = plain_state_dict(source.network)
        save_atomically({"network_weights": weights, "nnssl": own}, file)
        return file

    return write


def trained(tiny_dataset, trainer_yaml, name="nnSSLPoolTestTrainer", fold=0):
    trainer_yaml(name, SHORT)
    trainer = tiny_dataset.trainer(type(name, (nnSSLFinetuner,), {"config_name": name}), "2d", fold)
    trainer.perform_actual_validation = lambda *_: None
    trainer.run_training()
    return read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["nnssl"]


def test_fine_tuning_takes_the_same_fold_only(
    tiny_dataset, trainer_yaml, pool_weights, monkeypatch
):
    monkeypatch.setenv("nnssl_pretrained_weights", str(pool_weights(1)))
    with pytest.raises(ValueError, match="was trained on fold 1; fold 0 needs its fold 0"):
        trained(tiny_dataset, trainer_yaml)
    monkeypatch.setenv("nnssl_overrides", "weights.allow_contamination=true")
    record = trained(tiny_dataset, trainer_yaml)["weights"]
    assert record["contaminated"] is True
    assert record["seen_validation_cases"] == ["p0_f0", "p0_f1"]
    assert "was trained on fold 1" in record["contamination"][0]
    monkeypatch.delenv("nnssl_overrides")
    monkeypatch.setenv("nnssl_pretrained_weights", str(pool_weights(0)))
    record = trained(tiny_dataset, trainer_yaml, "nnSSLHonestTrainer")["weights"]
    assert (record["contaminated"], record["pretraining"]["fold"]) == (False, 0)
    raw, preprocessed = (folder.parent for folder in (tiny_dataset.raw, tiny_dataset.preprocessed))
    runs = check_runs(tiny_dataset.results.parent, Roots(raw, preprocessed), 900)
    assert sorted(honest for _, honest in runs) == [False, True]
