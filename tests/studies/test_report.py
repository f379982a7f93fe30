from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_study import plant, true_dice

from nnssl.leakage.check import Contamination, Finding
from nnssl.studies.report import figures, overlays
from nnssl.studies.report.findings import collect_findings
from nnssl.studies.report.page import TEMPLATE, write_markdown, write_report
from nnssl.studies.report.words import is_telling, name_budget, name_structure
from nnssl.studies.run.grid import Cell
from nnssl.studies.run.spec import PretrainingArm, ScratchArm

P_VALUE = re.compile(r"\bp\s*[=<]|Holm-corrected", re.IGNORECASE)
VOID = {"meta", "img", "br", "hr"}


class Checker(HTMLParser):
    """Tags that are open, and every address that the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open += [] if tag in VOID else [tag]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def noisy(gain: int, method: str = "M"):
    """Scratch misses 3 or 4 of 8 layers by repetition and patient, the method `gain` fewer."""

    def dice(cell: Cell, patient: int) -> float:
        draw = np.random.default_rng([cell.repetition, patient]).integers(3, 5)
        jitter = np.random.default_rng([cell.repetition, patient, 7]).integers(-1, 2)
        return true_dice(int(draw - (gain + jitter) * (cell.method == method)))

    return dice


def test_three_repetitions_give_differences_and_no_p_value(tmp_path: Path) -> None:
    plant(tmp_path, noisy(2))
    path = write_report(tmp_path / "study", images=False, workers=1)
    page = path.read_text()
    assert not P_VALUE.search(page)
    effects = json.loads((path.parent / "effects.json").read_text())
    (row,) = effects["comparisons"]
    assert row["effect"]["p"] is None
    assert "no claim is made from 3 repetitions" in page
    for value in row["effect"]["per_repetition"]:
        assert f"{value:+.3f}" in page.replace("&#43;", "+")


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    plant(tmp_path, noisy(2))
    page = write_report(tmp_path / "study", workers=1).read_text()
    checked = Checker(page)
    assert checked.open == []
    assert len(checked.addresses) >= 6
    assert all(each.startswith("data:image/") for each in checked.addresses)
    assert not checked.tags & {"script", "link", "iframe"}
    assert "url(" not in page
    assert "images of patients" in page
    without = write_report(tmp_path / "study", images=False, workers=1).read_text()
    assert "images of patients" not in without
    assert "image/png" not in without


@pytest.mark.parametrize(("gain", "claimed"), [(2, True), (0, False)])
def test_a_planted_effect_is_claimed_and_a_null_is_not(
    tmp_path: Path, gain: int, claimed: bool
) -> None:
    plant(tmp_path, noisy(gain), repetitions=6)
    text = write_markdown(tmp_path / "study", workers=1)
    assert ("M gains 0." in text) == claimed
    assert ("No difference between M and scratch at equal schedule was shown" in text) != claimed
    assert P_VALUE.search(text)


def test_a_gain_must_hold_over_the_best_schedule_of_scratch(tmp_path: Path) -> None:
    def dice(cell: Cell, patient: int) -> float:
        own = cell.role == "own_schedule"
        layers = int(np.random.default_rng([cell.repetition, patient]).integers(1, 3))
        a_little_worse = own and (cell.repetition, patient) == (0, 0)
        return true_dice(layers + a_little_worse if own or cell.method == "M" else 5)

    plant(tmp_path, dice, repetitions=6, scratch_schedules={"long": ScratchArm()})
    text = write_markdown(tmp_path / "study", workers=1)
    assert "M gains" not in text
    assert "M and scratch with the best of its own schedules was shown" in text
    assert "scratch (own schedule)" in text


def test_missing_cells_are_listed_and_mark_the_report(tmp_path: Path) -> None:
    plant(tmp_path, noisy(2), skip={"m-p2-r1-f0-short", "scratch-p2-r1-f0-short"})
    page = write_report(tmp_path / "study", images=False, workers=1).read_text()
    assert "Unfinished study: 2 of 7 runs to go" in page
    open_runs = page[page.index("Runs that are not done</h2>") :]
    for name in ("m-p2-r1-f0-short", "scratch-p2-r1-f0-short"):
        assert re.search(rf"<td>{name}</td>\s*<td>missing</td>", open_runs)
    assert "2 of 3" in page


def test_a_study_that_has_not_begun_gives_a_report(tmp_path: Path) -> None:
    plant(tmp_path, noisy(2))
    for cell in (tmp_path / "study" / "cells").iterdir():
        cell.rename(tmp_path / cell.name)
    page = write_report(tmp_path / "study", workers=1).read_text()
    assert "No pair of a pre-trained and a scratch run is finished yet" in page
    assert "Unfinished study: 7 of 7 runs to go" in page


def test_what_pre_training_has_seen_is_said_on_top(tmp_path: Path, monkeypatch) -> None:
    plant(tmp_path, noisy(2), repetitions=1)
    leaked = {
        f"pre-training {verdict}": Contamination((Finding("patient", verdict, "a sentence"),))
        for verdict in ("contaminated", "possible", "clean")
    }
    monkeypatch.setattr("nnssl.studies.report.page.find_leaks", lambda folder: leaked)
    page = write_report(tmp_path / "study", images=False, workers=1).read_text()
    (said,) = re.findall('<p class="warning"><strong>(.*?)</strong>', page)
    assert said.startswith("Contaminated: pre-training contaminated: pre-training saw what is")
    assert page.count("a sentence") == 3


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> $x_{y|z}$"
    plant(
        tmp_path,
        noisy(2, name),
        pretraining={name: PretrainingArm("nnSSLContrastiveTrainer")},
        summary="<img src='http://example.org/x.png'>",
        repetitions=2,
    )
    page = write_report(tmp_path / "study", workers=1).read_text()
    checked = Checker(page)
    assert "script" not in checked.tags
    assert all(each.startswith("data:image/") for each in checked.addresses)
    assert "&lt;script&gt;" in page
    assert "\\<script>" in write_markdown(tmp_path / "study", workers=1)


def test_nothing_that_is_printed_names_a_folder_of_this_machine(tmp_path: Path) -> None:
    """Commands are those that are typed in the folder of the study."""
    plant(tmp_path, noisy(2), repetitions=1, skip={"m-p2-r0-f0-short"})
    text = write_markdown(tmp_path / "study", workers=1)
    assert "missing | nnUNet_results=cells/m-p2-r0-f0-short" in text
    weights = r"nnssl_pretrained_weights=cells/pretrain-[\w.-]+/\S+/checkpoint_final.pth"
    assert re.search(weights, text)
    assert str(tmp_path) not in text
    assert str(tmp_path) not in write_report(tmp_path / "study", workers=1).read_text()


def test_hours_seeds_and_commands_are_there(tmp_path: Path) -> None:
    plant(tmp_path, noisy(2), repetitions=1)
    text = write_markdown(tmp_path / "study", workers=1)
    assert "| M | 1 x 0.50 h | 1 x 0.50 h | 1.00 |" in text
    assert "labels.patients=2 labels.seed=0' nnUNetv2_train 7 2d 0 -p nnUNetPlans" in text
    page = write_report(tmp_path / "study", images=False, workers=1).read_text()
    assert "nnunetv2 2.8.1" in page
    assert "Settings are chosen on fold 0" in page


def test_the_template_is_installed_with_the_package(tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    build = [sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path)]
    subprocess.run(build, cwd=repository, check=True, capture_output=True)
    folder = Path("nnssl", "studies", "report")
    assert (tmp_path / folder / TEMPLATE).read_text() == (
        repository / folder / TEMPLATE
    ).read_text()


def test_words_are_those_of_a_reader() -> None:
    assert name_budget(1, "patients") == "1 labelled patient"
    assert name_budget(2, "volumes") == "2 labelled volumes"
    assert name_structure("RV") == "right ventricle (RV)"
    assert name_structure("pancreas") == "pancreas"


@pytest.mark.parametrize(
    ("ends", "repetitions", "told"),
    [((-0.71, 0.71), 2, False), ((-0.1, 0.1), 2, False), ((-0.7, 0.7), 3, False),
     ((-0.05, 0.1), 3, True), ((float("nan"),) * 2, 8, False)],
)  # fmt: skip
def test_an_interval_that_says_nothing_is_not_shown(
    ends: tuple[float, float], repetitions: int, told: bool
) -> None:
    assert is_telling(*ends, repetitions) == told


@pytest.mark.parametrize(("repetitions", "drawn"), [(2, 0), (6, 1)])
def test_figures_say_what_they_show_and_keys_stand_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repetitions: int, drawn: int
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(figures, "render", lambda figure: made.append(figure) or b"")
    folder = plant(tmp_path, noisy(2), repetitions=repetitions)
    names = [each.name for each in figures.draw_all(collect_findings(folder.path, 2.0, 1))]
    drawing = dict(zip(names, made, strict=True))
    for figure in made:
        assert all(axis.get_legend() is None for axis in figure.axes)  # no symbol among the data
        assert all(axis.get_xlabel() for axis in figure.axes if axis.get_visible())
    (differences,) = drawing["paired_differences"].axes
    assert (
        differences.get_yticklabels()[0].get_text() == "M - scratch | 2 labelled patients | short"
    )
    bars = [line for line in differences.lines if len(line.get_xdata()) == 2 and line.get_lw() == 2]
    assert len(bars) == drawn
    low, high = differences.get_xlim()
    assert high - low < 1
    titles = [axis.get_title(loc="left") for axis in drawing["structures"].axes]
    assert "2 labelled patients" in titles
    (key,) = drawing["structures"].legends
    assert [text.get_text() for text in key.get_texts()] == ["scratch", "M"]


def test_overlays_name_slice_labels_and_structures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(overlays, "render", lambda figure, kind: made.append(figure) or b"")
    folder = plant(tmp_path, noisy(2), repetitions=1)
    found, read, described = collect_findings(folder.path, 2.0, 1), overlays.read_json, []
    monkeypatch.setattr(overlays, "read_json", lambda file: described.append(file) or read(file))
    overlays.draw_worst_cases(found)
    assert [file.name for file in described] == ["dataset.json"]
    for figure in made:
        title = figure.axes[0].get_title() + figure.axes[0].get_title(loc="left")
        assert re.search(r"slice \d+ of 14, Dice 0\.\d\d\n2 labelled patients, repetition 0", title)
        (key,) = figure.legends
        assert [t.get_text() for t in key.get_texts()] == ["cube", "reference", "prediction"]


def test_pictures_of_each_pre_training_and_a_table_for_a_paper(tmp_path: Path) -> None:
    name = "M_50%"
    arm = PretrainingArm("nnSSLContrastiveTrainer")
    folder = plant(tmp_path, noisy(2, name), repetitions=6, pretraining={name: arm})
    cell = next(cell for cell in folder.cells if cell.kind == "pretrain")
    pictures = folder.fold_folder(cell) / "pictures"
    pictures.mkdir()
    for stem in ("epoch_0001_clusters", "epoch_0002_clusters", "probe_embedding"):
        (pictures / f"{stem}.png").write_bytes(b"png")
    page = write_report(tmp_path / "study", workers=1).read_text()
    titles = re.findall(r"<h3>(M_50%: .*?)</h3>", page)
    assert titles == ["M_50%: epoch 0002 clusters", "M_50%: embedding"]
    report = tmp_path / "study" / "report"
    rows = list(csv.DictReader((report / "paper.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["scratch", name]
    assert rows[0]["labels"] == "2 labelled patients"
    assert re.fullmatch(r"[+-]0\.\d{3} to [+-]0\.\d{3}", rows[1]["95 % interval"])
    tex = (report / "paper.tex").read_text().splitlines()
    assert tex[0] == r"\begin{tabular}{" + "l" * len(rows[0]) + "}"
    assert r"M\_50\%" in tex[4]
    assert all(line.count(" & ") == len(rows[0]) - 1 for line in (tex[1], *tex[3:5]))
