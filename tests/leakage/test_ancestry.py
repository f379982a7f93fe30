"""Ancestry: what weights have seen holds through every hand-over, and is found under any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import ndimage

from nnssl.common.files import write_json
from nnssl.data.copies import make_signatures
from nnssl.data.thumbnails import make_thumbnail
from nnssl.leakage.ancestry import record_patients, trace_ancestry
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import SourceJudgement, judge
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.splits import read_splits
from nnssl.training.finetuner import nnSSLFinetuner
from nnssl.training.pretrainer import nnSSLPretrainer

HOME, ELSEWHERE = "Dataset001_Home", "Dataset002_Elsewhere"
SHORT = (
    "warmup_epochs: 0, num_epochs: 1, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1"
)
TRAIN, VAL = ["p1", "p2"], ["p3", "p4"]


def draw(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(10, 60, 60))
    return ndimage.gaussian_filter(noise, (1, 2, 2))[None].astype(np.float32)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Four patients; fold 0 validates on p3 and p4."""
    folder = tmp_path / HOME
    for seed, case in enumerate([*TRAIN, *VAL]):
        write_image(folder, case, draw(seed))
    write_patients(folder, {case: case for case in [*TRAIN, *VAL]})
    splits = [{"train": TRAIN, "val": VAL}, {"train": VAL, "val": TRAIN}]
    write_json(folder / "splits_final.json", splits)
    return folder


def write_image(folder: Path, case: str, image: np.ndarray) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    np.save(folder / "images" / f"{case}.npy", image)


def write_patients(folder: Path, patients: dict[str, str], **more: Any) -> None:
    origin = folder.name.split("_")[1]
    entries = {c: {"patient": p, "dataset": origin, **more} for c, p in patients.items()}
    write_json(folder / "nnssl" / "cases.json", {"cases": entries})


def pretrained(dataset: Path, train: list[str], fold: int | str = 0, **more: Any) -> dict:
    """A checkpoint as pre-training writes it, with signatures where the images are there."""
    cases = {"train": train, "left_out": [], **record_patients(dataset, train)}
    files = [dataset / "images" / f"{case}.npy" for case in train]
    if all(file.exists() for file in files):
        made = np.stack([make_thumbnail(np.load(file)) for file in files])
        cases["signatures"] = make_signatures(made)
    plans = {"plans_name": "P", "configurations": {"2d": {"data_identifier": "images"}}}
    own = {"dataset": dataset.name, "fold": fold, "configuration": "2d", "plans": plans}
    return {"nnssl": {"kind": "pretrain", **own, "cases": cases, "ancestors": [], **more}}


def finetuned(dataset: Path, train: list[str], source: dict, fold: int = 0) -> dict:
    """A checkpoint as fine-tuning writes it."""
    made = pretrained(dataset, train, fold, kind="finetune")
    del made["nnssl"]["ancestors"]
    made["nnssl"]["weights"] = {"ancestors": trace_ancestry(source)}
    return made


def judged(checkpoint: dict, dataset: Path, fold: int = 0, cases=VAL) -> SourceJudgement:
    return judge(trace_ancestry(checkpoint), Evaluation(dataset, fold, cases, dataset / "images"))


def test_what_a_source_saw_is_inherited_by_fine_tuning_and_by_pretraining(home):
    clean, spoiled = pretrained(home, TRAIN), pretrained(home, VAL, fold=1)
    assert judged(clean, home).contaminated is False
    for source, expected in ((clean, False), (spoiled, True)):
        tuned = finetuned(home, TRAIN, source)
        again = finetuned(home, TRAIN, tuned)
        further = pretrained(home, TRAIN, ancestors=trace_ancestry(again))
        for checkpoint in (tuned, again, further):
            found = judged(checkpoint, home)
            assert found.contaminated is expected
            assert found.cases == (tuple(VAL) if expected else ())
    assert [each["kind"] for each in trace_ancestry(further)] == [
        *("pretrain", "finetune", "finetune", "pretrain"),
    ]


def test_fine_tuning_on_another_fold_is_itself_an_ancestor(home):
    assert judged(finetuned(home, VAL, pretrained(home, TRAIN), fold=1), home).contaminated


def test_older_checkpoints_inherit_the_unknown(home):
    old = pretrained(home, TRAIN, config={"sections": {"training": {"initial_weights": "x.pth"}}})
    del old["nnssl"]["ancestors"]
    assert judged(old, home).contaminated is None
    assert "not recorded what the weights that Dataset001_Home began with" in str(
        judged(old, home).warnings
    )
    tuned = {"nnssl": {"kind": "finetune", "dataset": HOME, "labels": {"cases": TRAIN}}}
    assert judged(tuned, home).contaminated is None
    tuned["nnssl"]["labels"]["cases"] = VAL
    assert judged(tuned, home).contaminated
    tuned["nnssl"] |= {"labels": {"cases": TRAIN}, "weights": {"how": "random"}}
    assert judged(tuned, home).contaminated is False


@pytest.mark.parametrize(("fold", "expected"), [(0, None), (1, True), ("all", True), (7, None)])
def test_a_stock_run_is_judged_by_the_folds_and_never_proven_clean(home, fold, expected):
    plans = {"dataset_name": HOME, "configurations": {"2d": {}}}
    stock = {"init_args": {"plans": plans, "configuration": "2d", "fold": fold}}
    assert judged(stock, home).contaminated is expected


CHANGES = {
    "copied": lambda image: image,
    "renormalised": lambda image: 300 * image + 1000,
    "resampled": lambda image: ndimage.zoom(image, (1, 1, 0.6, 0.6), order=1),
    "mirrored and transposed": lambda image: image[:, :, ::-1].transpose(0, 1, 3, 2),
}


@pytest.mark.parametrize("at_hand", [True, False], ids=["images at hand", "signatures only"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_same_images_under_another_id_are_found_by_content(home, tmp_path, change, at_hand):
    other = tmp_path / ELSEWHERE
    for number, seed in enumerate((3, 9, 8)):  # home's p4, and two of strangers
        write_image(other, f"x{number}", change(draw(seed)))
    write_patients(other, {f"x{n}": f"x{n}" for n in range(3)})
    checkpoint = pretrained(other, ["x0", "x1", "x2"])
    if at_hand:
        del checkpoint["nnssl"]["cases"]["signatures"]
    else:
        other.rename(tmp_path / "gone")
    found = judged(checkpoint, home)
    assert (found.contaminated, found.cases) == (True, ("p4",))
    assert "p4 = x0" in found.reasons[0]
    assert found.record["pretraining"] == {"dataset": ELSEWHERE, "fold": 0}
    with pytest.raises(ValueError, match="near-duplicates of 1 cases"):
        found.refuse(allowed=False)


def test_other_images_of_other_patients_are_clean_and_without_records_unknown(home, tmp_path):
    other = tmp_path / ELSEWHERE
    write_image(other, "x1", draw(9))
    write_patients(other, {"x1": "x1"})
    assert judged(pretrained(other, ["x1"]), home).contaminated is False
    (other / "nnssl" / "cases.json").unlink()
    found = judged(pretrained(other, ["x1"]), home)
    assert found.contaminated is None
    assert "nnssl_cases -d 2" in found.warnings[0]


def test_images_that_are_gone_cannot_be_told(home, tmp_path):
    other = tmp_path / ELSEWHERE
    write_patients(other, {"x1": "x1"})
    found = judged(pretrained(other, ["x1"]), home)
    assert found.contaminated is None
    assert "cannot be compared" in found.warnings[0]


def test_a_cropped_copy_is_not_called_clean_and_with_the_patients_name_found(home, tmp_path):
    other = tmp_path / ELSEWHERE
    write_image(other, "x1", draw(3)[:, :, 3:-3, 3:-3])
    write_patients(other, {"x1": "x1"})
    found = judged(pretrained(other, ["x1"]), home)
    assert found.contaminated is None
    assert "perhaps cropped copies" in found.warnings[0]
    write_patients(other, {"x1": "p4"})
    assert judged(pretrained(other, ["x1"]), home).contaminated is True


def test_cases_of_the_same_source_file_are_found_without_images(home, tmp_path):
    write_patients(home, {case: case for case in [*TRAIN, *VAL]}, sha256="abc")
    other = tmp_path / ELSEWHERE
    write_patients(other, {"x1": "x1"}, sha256="abc")
    assert "same files" in judged(pretrained(other, ["x1"]), home).reasons[0]


def test_within_one_dataset_images_are_left_to_its_records(home):
    """A training case that copies a validation case spoils the folds, whatever the weights."""
    write_image(home, "p1", draw(3))
    assert judged(pretrained(home, TRAIN), home).contaminated is False


@pytest.fixture
def pretrain(tiny_dataset, trainer_yaml):
    def build(fold: int, more: str = "") -> nnSSLPretrainer:
        name = f"nnSSLPre{fold}{'B' if more else 'A'}Trainer"
        trainer_yaml(name, f"extends: nnSSLMAETrainer\ntraining: {{{SHORT}{more}}}")
        trainer = tiny_dataset.trainer(
            type(name, (nnSSLPretrainer,), {"config_name": name}), "2d", fold
        )
        trainer.history.plot = lambda *_: None
        return trainer

    return build


def final_of(trainer: Any) -> Path:
    trainer.run_training()
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def test_the_trainers_hand_it_over(tiny_dataset, trainer_yaml, pretrain, monkeypatch):
    """Pre-train fold 1, pre-train fold 0 from it: fine-tuning on fold 0 refuses, on request not."""
    first = final_of(pretrain(1))
    second = final_of(pretrain(0, f", initial_weights: {first}"))
    own = read_checkpoint(second)["nnssl"]
    assert own["cases"]["signatures"].shape == (8, 1024)
    assert own["cases"]["records"]["patient"] == [c[:2] for c in own["cases"]["train"]]
    log = next(second.parent.glob("training_log_*.txt")).read_text()
    assert "initial weights: fine-tuning on this fold will refuse" in log
    monkeypatch.setenv("nnssl_pretrained_weights", str(second))

    def tune(name: str, more: str) -> nnSSLFinetuner:
        trainer_yaml(name, f"kind: finetune\ntraining: {{{SHORT}}}\n{more}")
        kind = type(name, (nnSSLFinetuner,), {"config_name": name})
        trainer = tiny_dataset.trainer(kind, "2d", 0)
        trainer.perform_actual_validation = lambda *_: None
        return trainer

    with pytest.raises(ValueError, match="have seen what this fold evaluates"):
        tune("nnSSLTuneATrainer", "").run_training()
    tuned = final_of(tune("nnSSLTuneBTrainer", "weights: {allow_contamination: true}"))
    lineage = trace_ancestry(read_checkpoint(tuned))
    assert [(each["kind"], each["fold"]) for each in lineage] == [
        *(("finetune", 0), ("pretrain", 0), ("pretrain", 1)),
    ]
    monkeypatch.setenv("nnssl_pretrained_weights", str(tuned))
    with pytest.raises(ValueError, match="have seen what this fold evaluates"):
        tune("nnSSLTuneCTrainer", "").run_training()


def test_pretraining_tells_of_parts_of_patients_that_nobody_told_of(tiny_dataset, pretrain):
    for folder in (tiny_dataset.preprocessed / "nnssl", tiny_dataset.raw):
        (folder / "cases.json").unlink()
    trainer = pretrain(0)
    trainer.on_train_start()
    trainer.close()
    log = Path(trainer.log_file).read_text()
    assert "10 cases look like parts of 5 patients (p0: p0_f0, p0_f1;" in log
    assert "records" not in trainer.seen_record


def test_a_real_stock_checkpoint_of_another_fold_is_refused(tiny_dataset, trainer_yaml):
    stock = tiny_dataset.trainer(nnUNetTrainer, "2d", 1, continue_training=False)
    stock.initialize()
    stock.save_checkpoint(str(tiny_dataset.configs / "stock.pth"))
    val = read_splits(tiny_dataset.preprocessed / "splits_final.json")[0]["val"]
    evaluation = Evaluation(tiny_dataset.preprocessed, 0, val)
    checkpoint = read_checkpoint(tiny_dataset.configs / "stock.pth")
    assert judge(trace_ancestry(checkpoint), evaluation).contaminated


def test_a_checkpoint_with_signatures_opens_as_plain_values(home, tmp_path):
    made = pretrained(home, TRAIN)
    save_atomically({**made, "network_weights": {}}, tmp_path / "c.pth")
    assert judged(read_checkpoint(tmp_path / "c.pth"), home).contaminated is False
