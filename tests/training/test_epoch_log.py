"""The log's line of an epoch, what it warns of, and `history.csv`."""

from __future__ import annotations

import csv

import pytest
import torch

from nnssl.training.epoch_log import (
    describe_epoch,
    describe_probe,
    describe_seconds,
    describe_time,
    find_troubles,
)
from nnssl.training.history import History, WeightChange, read_stock_terms, tell_loggers

EPOCH = {
    "train_loss": 2.74123,
    "val_loss": 2.80301,
    "collapse_loss": 3.6109,
    "accuracy": 0.42,
    "val_accuracy": 0.4,
    "chance": 0.027,
    "images_per_second": 812.4,
    "epoch_seconds": 38.0,
    "seconds_waited": 1.14,
}


def repeat(epochs, **terms):
    return {key: [value] * epochs for key, value in {**EPOCH, **terms}.items()}


def test_the_line_of_an_epoch():
    assert describe_epoch(repeat(12), 400, ["accuracy"]) == (
        "Epoch 12 of 400: loss 2.741 (validation 2.803, collapse 3.611), "
        "accuracy 0.42 (validation 0.4, chance 0.027), 812 images/s, "
        "38 s (3% of it waiting for data), 4 h 06 min left"
    )


def test_what_was_not_measured_is_not_told():
    values = {"train_loss": [1.0], "val_loss": [None], "epoch_seconds": [0.5]}
    assert describe_epoch(values, 1, ["accuracy"]) == "Epoch 1 of 1: loss 1, 0.5 s"
    assert describe_time(values, 3) == "Epoch 1 of 3: 0.5 s, 1.0 s left"


def test_parts_of_a_joint_objective_have_their_own_bounds():
    line = describe_epoch(
        {"a_loss": [1.0], "a_collapse_loss": [2.0], "a_accuracy": [0.5], "a_chance": [0.1]},
        1,
        ["a_loss", "a_accuracy"],
    )
    assert "a loss 1 (collapse 2), a accuracy 0.5 (chance 0.1)" in line


def test_the_time_left_forgets_slow_first_epochs():
    values = {"epoch_seconds": [1000.0, *[60.0] * 9]}
    assert describe_time(values, 70) == "Epoch 10 of 70: 60 s, 1 h 00 min left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (99, "99 s"), (150, "2 min"), (3600, "1 h 00 min"), (187200, "2 d 4 h")],
)
def test_durations(seconds, text):
    assert describe_seconds(seconds) == text


def test_the_line_of_the_probe():
    terms = {"probe_dice": 0.3, "probe_dice_random": 0.2, "probe_position_error": 0.1}
    terms |= {"probe_position_chance": 0.25, "probe_effective_rank": 9.0, "probe_seconds": 3.0}
    terms |= {"probe_nmi": 0.3, "probe_nmi_clusters": 0.2}
    assert describe_probe(terms) == (
        "Probe of the frozen features: Dice 0.3 (random 0.2), "
        "error of the position 0.1 (chance 0.25), effective rank 9, "
        "NMI of clusters and labels 0.3 (clusters 0.2)"
    )


def troubles(values, overfits=True):
    return list(find_troubles(values, steps=100, overfits=overfits))


@pytest.mark.parametrize(
    ("epochs", "told"), [(4, 0), (5, 1), (6, 0), (10, 1), (15, 0), (20, 1), (40, 1)]
)
def test_a_loss_at_its_collapse_value_is_told_now_and_then(epochs, told):
    found = troubles(repeat(epochs, train_loss=3.6))
    assert len(found) == told
    assert all(f"loss at its collapse value (3.611) for {epochs} epochs" in f for f in found)


@pytest.mark.parametrize(
    ("loss", "collapse", "told"),
    [
        (3.59, 3.61, False),
        (3.7, 3.61, True),
        (0.001, 0.0, True),  # BYOL: everything agrees
        (0.3, 0.0, False),
        (-1.2, -1.0, False),
        (-1.0, -1.0, True),
        (None, 3.61, False),
    ],
)
def test_when_a_loss_is_at_its_collapse_value(loss, collapse, told):
    assert bool(troubles(repeat(5, train_loss=loss, collapse_loss=collapse))) == told


def test_a_rising_validation_loss_is_told_where_it_is_a_bad_sign():
    values = repeat(12)
    values["val_loss"] = [3.0, 2.0, *[2.3] * 10]
    values["train_loss"] = [3.0, 2.5, *[2.0] * 10]
    assert "of 10 epochs ago" in troubles(values)[0]
    assert not troubles(values, overfits=False)
    assert not troubles({**values, "val_loss": [3.0, 2.0, *[2.15] * 10]})
    assert not troubles({**values, "train_loss": [2.5] * 12})


def test_waiting_and_skipped_steps_are_told():
    assert "40% of the time is spent waiting" in troubles(repeat(5, seconds_waited=15.2))[0]
    assert not troubles(repeat(5, seconds_waited=10.0))
    values = repeat(3)
    assert "11 of 100 steps were skipped" in troubles({**values, "skipped_steps": [0, 50, 61]})[0]
    assert not troubles({**values, "skipped_steps": [0, 50, 60]})


def read(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_per_epoch(tmp_path):
    history = History()
    history.log(0, {"train_loss": 1.5})
    history.log(1, {"train_loss": 0.1 + 0.2, "probe_dice": 0.5})
    history.write(tmp_path)
    assert read(tmp_path) == [
        {"epoch": "1", "train_loss": "1.5", "probe_dice": ""},
        {"epoch": "2", "train_loss": "0.30000000000000004", "probe_dice": "0.5"},
    ]
    history.log(0, {"train_loss": 9.0})  # a resumed run takes it again
    history.write(tmp_path)
    assert [row["train_loss"] for row in read(tmp_path)] == ["9.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_table_that_cannot_be_written_leaves_the_former(tmp_path, monkeypatch):
    history = History({"train_loss": [1.0]})
    history.write(tmp_path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    history.log(1, {"train_loss": 2.0})
    with pytest.raises(OSError, match="full"):
        history.write(tmp_path)
    assert len(read(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_terms_of_nnunets_logger_get_our_names():
    logging = {"train_losses": [0.5, 0.4], "mean_fg_dice": [0.1, 0.2], "lrs": [0.01, 0.01]}
    logging["dice_per_class_or_region"] = [[0.1, 0.3], [0.2, 0.4]]
    assert read_stock_terms(logging) == {
        "train_loss": [0.5, 0.4],
        "pseudo_dice": [0.1, 0.2],
        "learning_rate": [0.01, 0.01],
        "pseudo_dice_1": [0.1, 0.2],
        "pseudo_dice_2": [0.3, 0.4],
    }


def test_further_loggers_get_every_term_that_was_measured():
    class Further:
        def __init__(self):
            self.told = []

        def log(self, *what):
            self.told.append(what)

    class Logger:
        loggers = (Further(), Further())

    tell_loggers(Logger, {"train_loss": 1.0, "val_loss": None}, 3)
    assert [each.told for each in Logger.loggers] == [[("train_loss", 1.0, 3)]] * 2
    tell_loggers(object(), {"train_loss": 1.0}, 3)  # nnU-Net 2.6.2


def test_change_of_weights_is_per_stage_that_has_weights(make_resnet):
    """The first stage of a U-Net with a ResNet as encoder passes the image on and has none."""
    network = make_resnet()
    change = WeightChange(network)
    with torch.no_grad():
        for parameter in network.encoder.stages[2].parameters():
            parameter.mul_(1.5)
    found = change(network)
    assert set(found) == {f"weight_change_stage_{stage}" for stage in (1, 2, 3, 4, 5)}
    assert found.pop("weight_change_stage_2") == pytest.approx(0.5)
    assert set(found.values()) == {0.0}
