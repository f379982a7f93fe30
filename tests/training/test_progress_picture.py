"""The words of `progress.png`, read from matplotlib's objects."""

from __future__ import annotations

from typing import Any

import pytest

from nnssl.training.progress_picture import make_figure

VALUES: dict[str, list[float | None]] = {
    "train_loss": [3.0, 2.0, 1.5],
    "val_loss": [3.1, 2.2, None],
    "collapse_loss": [3.2, 3.2, 3.2],
    "accuracy": [0.1, 0.2, 0.3],
    "val_accuracy": [0.1, 0.1, 0.2],
    "a_new_$term$": [1.0, 2.0, 3.0],
    "probe_dice": [None, None, 0.6],
    "probe_dice_random": [None, None, 0.1],
    "skipped_steps": [0.0, 0.0, 0.0],
    "epoch_seconds": [4.0, 5.0, 6.0],
}


def read(values: dict[str, list[float | None]]) -> tuple[Any, dict[str, Any]]:
    figure = make_figure(values, {}, "nnSSLATrainer on Dataset001_$x, fold 0")
    axes = [axis for axis in figure.axes if axis.get_visible()]
    return figure, {axis.get_title(loc="left"): axis for axis in axes}


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    figure, panels = read(VALUES)
    assert figure.get_suptitle() == r"nnSSLATrainer on Dataset001_\$x, fold 0"
    units = {title: axis.get_ylabel() for title, axis in panels.items()}
    assert units["probe: Dice of frozen features"] == "Dice (0 to 1)"
    assert units["time of an epoch"] == "seconds"
    assert units[r"a new \$term\$"] == r"a new \$term\$"
    assert {axis.get_xlabel() for axis in panels.values()} == {"epochs done"}
    labels = [each.get_text() for each in panels["loss"].get_legend().get_texts()]
    assert labels == ["training: 1.5", "validation: 2.2", "if all were alike (collapse): 3.2"]
    assert not any("skipped" in title for title in panels)  # nothing was
    figure.draw_without_rendering()


@pytest.mark.parametrize("epochs", [1, 3])
def test_no_panel_is_empty_and_epochs_are_whole_from_1(epochs: int) -> None:
    figure, panels = read({key: column[:epochs] for key, column in VALUES.items()})
    assert ("probe: Dice of frozen features" in panels) == (epochs == 3)
    figure.draw_without_rendering()
    for axis in panels.values():
        assert axis.lines
        for line in axis.lines:
            assert set(line.get_xdata()) <= set(range(1, epochs + 1))
            assert line.get_marker() == "o"  # a single point is seen
        assert all(tick == int(tick) for tick in axis.get_xticks())
