"""A budget of slices: the other slices are never read, by nobody."""

from __future__ import annotations

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnssl.data.supervised_batches import LabelledSlices
from nnssl.training.finetuner import nnSSLFinetuner

SLICES = """
kind: finetune
training: {num_epochs: 1, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1}
weights: {source: none}
labels: {slices: 5}
"""


@pytest.fixture
def train_slices(tiny_dataset, trainer_yaml):
    def build(configuration="2d"):
        trainer_yaml("nnSSLSliceTrainer", SLICES)
        kind = type("nnSSLSliceTrainer", (nnSSLFinetuner,), {"config_name": "nnSSLSliceTrainer"})
        trainer = tiny_dataset.trainer(kind, configuration)
        trainer.initialize()
        return trainer

    return build


class Recorded:
    """A dataset whose volumes say which slices were read."""

    def __init__(self):
        self.read = set()

    def load_case(self, case):
        locations = {1: np.array([[0, z, z, z] for z in range(6)]), 2: []}
        return Volume(self.read), Volume(self.read), None, {"class_locations": locations, "a": 1}


class Volume:
    def __init__(self, read):
        self.read = read

    def __getitem__(self, place):
        channels, index = place
        assert channels == slice(None)
        self.read.add(index)
        return np.full((2, 4, 4), index)


def test_only_the_chosen_slices_are_read_and_places_are_renumbered():
    dataset = Recorded()
    few = LabelledSlices(dataset, {"a": [1, 4]})
    image, label, previous, properties = few.load_case("a")
    assert dataset.read == {1, 4}
    assert image.shape == label.shape == (2, 2, 4, 4)
    assert image[0, :, 0, 0].tolist() == [1, 4]
    assert previous is None
    assert properties["class_locations"][1].tolist() == [[0, 0, 1, 1], [0, 1, 4, 4]]
    assert len(properties["class_locations"][2]) == 0
    assert properties["a"] == 1


def test_every_slice_is_drawn_equally_often():
    assert LabelledSlices(None, {"a": [1, 4], "b": [0]}).identifiers == ["a", "a", "b"]


def test_training_never_sees_the_other_slices(train_slices, tiny_dataset):
    trainer = train_slices()
    train, _ = trainer.do_split()
    chosen = trainer.labelled.slices
    assert sum(map(len, chosen.values())) == 5
    folder = Path(trainer.preprocessed_dataset_folder)
    for case in json.loads((tiny_dataset.preprocessed / "splits_final.json").read_text())[0][
        "train"
    ]:
        poison(folder / f"{case}.b2nd", chosen.get(case, []))
    trainer.on_train_start()
    losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(3)]
    stored = json.loads((Path(trainer.output_folder) / "labelled_cases.json").read_text())
    trainer.close()
    assert np.isfinite(losses).all()
    assert stored["number_of_slices"] == 5
    assert stored["slices"] == chosen
    assert stored["cases"] == train == sorted(chosen)


def test_poison_is_felt_without_the_restriction(train_slices, monkeypatch):
    monkeypatch.setattr(
        "nnssl.training.labelled_batches.LabelledSlices", lambda dataset, _: dataset
    )
    trainer = train_slices()
    trainer.do_split()
    for case, slices in trainer.labelled.slices.items():
        poison(Path(trainer.preprocessed_dataset_folder) / f"{case}.b2nd", slices)
    trainer.on_train_start()
    with pytest.raises(RuntimeError, match=r"NaN|finite"):
        [next(trainer.dataloader_train) for _ in range(3)]
    trainer.close()


def test_slices_are_refused_in_3d(train_slices):
    with pytest.raises(ValueError, match=r"labels\.slices: found 5, .* 3D patches"):
        train_slices("3d_fullres").do_split()


def poison(file: Path, spared: list[int]) -> None:
    array = blosc2.open(str(file), mode="r")[:]
    array[:, [i for i in range(array.shape[1]) if i not in spared]] = np.nan
    file.unlink()
    blosc2.asarray(array, urlpath=str(file), chunks=array.shape)
