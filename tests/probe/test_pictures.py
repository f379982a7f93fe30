"""The pictures of the probe have words and a key of their colours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnssl.probe.pictures import MOST_NAMES, make_embedding_figure
from nnssl.probe.slices import Slices


def make_cases(patients: int, datasets: int = 1) -> list[Any]:
    return [
        SimpleNamespace(identifier=f"p${n}$", patient=n, dataset=n % datasets, sign=1)
        for n in range(patients)
    ]


@pytest.mark.parametrize("patients", [3, 20])
def test_the_embedding_has_a_key_of_its_colours(patients: int) -> None:
    cases = make_cases(patients, datasets=2)
    figure = make_embedding_figure(Slices(cases, [torch.randn(4, 5) for _ in cases]), 2)
    figure.draw_without_rendering()
    parts, of_patients, datasets = figure.axes[:3]
    assert parts.get_title(loc="left") == "PCA of slices, by part of the volume (2)"
    assert [t.get_text() for t in parts.get_legend().get_texts()] == ["1 of 2", "2 of 2"]
    assert [t.get_text() for t in datasets.get_legend().get_texts()] == ["dataset 0", "dataset 1"]
    named = [t.get_text() for t in of_patients.get_legend().get_texts()]
    assert named == [rf"p\${n}\$" for n in range(min(patients, MOST_NAMES))]
    assert ("8 more" in of_patients.get_legend().get_title().get_text()) == (patients == 20)
    colours = {tuple(each.get_facecolor()[0]) for each in of_patients.collections}
    assert len(colours) == patients


def test_one_dataset_has_no_panel_of_its_own() -> None:
    figure = make_embedding_figure(Slices(make_cases(3), [torch.randn(4, 5)] * 3), 2)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["PCA of slices, by part of the volume (2)", "PCA of slices, by patient (3)"]
