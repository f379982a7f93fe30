"""`report.html` of a run: whole, closed in itself, and with every part that it promises."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.cli import runs
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.training.run_report import write_run_report

EVIL = "<script>alert('x')</script>"
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Texts by heading, tags and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a finished run whose names are hostile."""
    folder = tmp_path / "Dataset999_Tiny" / "nnSSLATrainer__nnUNetPlans__2d" / "fold_0"
    (folder / "pictures").mkdir(parents=True)
    files = ("progress.png", "pictures/epoch_0003_views.png", "pictures/probe_embedding.png")
    for name in (*files, "pictures/epoch_0002_views.png"):
        (folder / name).write_bytes(PNG)
    config: dict[str, Any] = {"name": "nnSSLATrainer", "kind": "pretrain", "about": {}}
    config |= {"sources": [EVIL], "sections": {"training": {"num_epochs": 3}}}
    (folder / "resolved_config.yaml").write_text(json.dumps(config))
    dice = {"pretrained": 0.611, "random": 0.141}
    encoders = {n: {"dice": d, "dice_per_structure": {EVIL: d}} for n, d in dice.items()}
    probe = {"encoders": encoders, "settings": {"patients": 2}, "labels": "Labels of a, b"}
    (folder / "probe.json").write_text(json.dumps(probe))
    own: dict[str, Any] = {
        "kind": "pretrain",
        "epoch": 3,
        "config": config,
        "step": 30,
        "about": {"summary": EVIL},
        "history": {"train_loss": [2.0, None, 1.25], "epoch_seconds": [3600.0, 3600.0, 1800.0]},
        "budget": {"patch_size": [80, 96], "samples": 8, "views": 2.0},
        "cases": {
            "train": ["a", "b", EVIL],
            "left_out": ["d"],
            "records": {"patient": ["p", "p", EVIL]},
            "unlabelled": {
                "images": {EVIL: {"identifiers": ["i", "j"]}},
                "left_out": {"patients of validation cases": 3, "patients of test images": 2},
            },
        },
    }
    labels = {"background": 0, "heart": 1}
    start = {
        "plans": {
            "plans_name": "nnUNetPlans",
            "dataset_name": "Dataset999_Tiny",
            "configurations": {"2d": {"patch_size": [64, 64], "batch_size": 4}},
        },
        "dataset_json": {"labels": labels},
    }
    content = {"network_weights": {"w": torch.ones(2)}, "nnssl": own, "init_args": start}
    save_atomically(content, folder / "checkpoint_final.pth")
    return folder


def test_the_page_joins_what_a_reader_asks_for(run: Path) -> None:
    page = Page(write_run_report(run).read_text())
    text = "\n".join(page.texts)
    for heading in ("The line to type next", "What was seen", "Budget of a step, per process",
                    "Probe of the frozen features", "Course of the training"):  # fmt: skip
        assert heading in page.texts
    pairs = dict(zip(page.texts, page.texts[1:], strict=False))
    assert pairs["training cases"] == "3"
    assert pairs["patients of these"] == "2"
    assert pairs["images without labels that were added"] == "2"
    assert pairs["images without labels that were left out (patients who are evaluated)"] == "5"
    assert pairs["validation cases, never learned from"] == "1"
    assert pairs["patch (voxels)"] == "80x96"
    assert "30 steps in 3 epochs took 2 h 30 min. The training loss ended at 1.25." in text
    assert "2 labelled patients, reaches a Dice of 0.611 (random weights: 0.141)" in text
    line = next(each for each in page.texts if "nnUNetv2_train" in each)
    assert line == (
        f"nnssl_pretrained_weights={run / 'checkpoint_final.pth'} nnUNetv2_train Dataset999_Tiny "
        "2d 0 -p nnUNetPlans -tr nnSSLFinetuneTrainer"
    )


def test_the_page_needs_nothing_else_and_names_stay_text(run: Path) -> None:
    page = Page(text := write_run_report(run).read_text())
    assert "script" not in page.tags
    assert EVIL in page.texts  # as text
    assert EVIL in next(each for each in page.texts if "num_epochs" in each)
    assert len(page.addresses) == 3  # course, last views, embedding; not the former epoch's
    assert all(each.startswith("data:image/png;base64,") for each in page.addresses)
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_what_is_missing_is_said_and_does_no_harm(run: Path) -> None:
    for name in ("progress.png", "probe.json", "resolved_config.yaml"):
        (run / name).unlink()
    page = Page(write_run_report(run).read_text())
    assert "Course of the training" not in page.texts
    assert "Probe of the frozen features" not in page.texts
    assert "not recorded" in page.texts


def test_the_command_writes_the_page_of_every_finished_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(run.parents[2]))
    assert runs.main(["--report"]) == 0
    assert str(run / "report.html") in capsys.readouterr().out
    assert (run / "report.html").is_file()
