"""`nnssl_pseudo_label`: true and pseudo-labels in one dataset that stock nnU-Net reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnssl.cli.pseudo_label import main
from nnssl.training.finetuner import nnSSLFinetuner
from nnssl.training.pseudo_labels import measure_agreement

SHORT = """
extends: nnSSLScratchTrainer
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1}
labels: {patients: 1}
"""


@pytest.fixture
def run(tiny_dataset, trainer_yaml):
    """Folder of a finished fine-tuning run on one labelled patient of fold 0."""
    trainer_yaml("nnSSLTestTrainer", SHORT)
    kind = type("nnSSLTestTrainer", (nnSSLFinetuner,), {"config_name": "nnSSLTestTrainer"})
    trainer = tiny_dataset.trainer(kind)
    trainer.run_training()
    return trainer


def test_a_dataset_of_true_and_pseudo_labels(run, tiny_dataset, capsys):
    assert main([run.output_folder, "-o", "500", "--keep", "0.5", "-device", "cpu"]) == 0
    name = f"Dataset500_{tiny_dataset.raw.name[11:]}_pseudo"
    folder = tiny_dataset.raw.parent / name
    record = json.loads((folder / "pseudo_labels.json").read_text())
    true, pseudo = record["true_labels"], record["pseudo_labels"]
    assert true == run.labelled.cases
    assert len(record["agreement"]) == 6
    assert len(pseudo) == 3
    assert not set(pseudo) & set(true)
    left = set(record["agreement"]) - set(pseudo)
    values = record["agreement"]
    assert min(values[case] for case in pseudo) >= max(values[case] for case in left)
    (split,) = json.loads((folder / "splits_final.json").read_text())
    assert split == {"train": sorted(true + pseudo), "val": run.fold_validation}
    files = get_filenames_of_train_images_and_targets(str(folder))
    assert files.keys() == {*true, *pseudo, *run.fold_validation}
    for case, entry in files.items():
        labels = Path(entry["label"]).resolve()
        assert (labels.parent == folder / "labelsTr") == (case in pseudo)
        assert Path(entry["images"][0]).resolve().parent == tiny_dataset.raw / "imagesTr"
        image, label = SimpleITK.ReadImage(entry["images"][0]), SimpleITK.ReadImage(entry["label"])
        assert image.GetSize() == label.GetSize()
        assert image.GetSpacing() == pytest.approx(label.GetSpacing())
    prepared = tiny_dataset.preprocessed.parent / name
    plans = json.loads((prepared / "nnUNetPlans.json").read_text())
    assert plans["dataset_name"] == name
    cases = json.loads((prepared / "nnssl" / "cases.json").read_text())["cases"]
    assert cases[true[0]]["patient"] == true[0].split("_")[0]
    text = capsys.readouterr().out
    assert "nnUNetv2_preprocess -d 500 -plans_name nnUNetPlans -c 2d" in text
    assert "fine-tune on true labels" in text
    assert "'labels.patients=1 labels.seed=0'" in text


def test_an_interrupted_prediction_goes_on(run, tiny_dataset, monkeypatch):
    from nnssl.training import pseudo_labels

    label, seen = pseudo_labels._label, []

    def counted(*arguments):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(arguments[-1].name)
        return label(*arguments)

    monkeypatch.setattr(pseudo_labels, "_label", counted)
    arguments = [run.output_folder, "-o", "Dataset501_Again", "-device", "cpu"]
    assert main(arguments) == 130
    assert not (tiny_dataset.raw.parent / "Dataset501_Again").exists()
    monkeypatch.setattr(pseudo_labels, "_label", lambda *a: seen.append(a[-1].name) or label(*a))
    assert main(arguments) == 0
    assert len(seen) == len(set(seen)) == 6


def test_what_is_refused(run, tiny_dataset, capsys):
    for arguments, words in (
        (["nowhere", "-o", "500"], "no finished run"),
        ([run.output_folder, "-o", "500", "--keep", "0"], "allowed: above 0, up to 1"),
        ([run.output_folder, "-o", "500", "-f", "1"], "the runs say 0"),
        ([run.output_folder, "-o", tiny_dataset.raw.name], "exists already"),
    ):
        with pytest.raises(SystemExit, match=words):
            main(arguments)


def test_agreement_is_the_mean_dice_of_what_is_seen():
    one, other = np.zeros((2, 4, 4), int), np.zeros((2, 4, 4), int)
    assert measure_agreement(one, other) == 1
    one[0, :2], other[0, :1] = 1, 1  # 8 and 4 voxels, 4 in common
    other[1, 0, 0] = 2
    assert measure_agreement(one, other) == pytest.approx((2 * 4 / 12 + 0) / 2)
