"""`nnssl_trainers` lists what `-tr` accepts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.cli import trainers, trainers_shown
from nnssl.cli.command import table
from nnssl.cli.trainers_shown import make_pages
from nnssl.common.checks import REQUIRED, find_knobs, fit
from nnssl.config import find_configs
from nnssl.config.files import INSTALLED, read_yaml
from nnssl.training.factory import schema_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("nnssl_configs", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_every_trainer_is_listed_pretraining_first(folder, capsys):
    (folder / "nnSSLMineTrainer.yaml").write_text(
        "extends: nnSSLContrastiveTrainer\nabout: {summary: my own one}\n"
    )
    assert trainers.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[2:] if line.startswith("nnSSL")]
    assert sorted(names) == sorted(find_configs())
    assert names.index("nnSSLContrastiveTrainer") < names.index("nnSSLFinetuneTrainer")
    mine = next(line for line in lines if line.startswith("nnSSLMineTrainer"))
    assert "my own one" in mine
    assert "Chaitanya" in mine
    assert "2D and 3D" in mine
    assert "encoder" in mine


def test_a_broken_file_is_told_and_does_not_hide_the_others(folder, capsys):
    (folder / "nnSSLBrokenTrainer.yaml").write_text("kind: [\n")
    assert trainers.main([]) == 1
    captured = capsys.readouterr()
    assert "nnSSLContrastiveTrainer" in captured.out
    assert f"{folder / 'nnSSLBrokenTrainer.yaml'}, line 2" in captured.err


def test_the_citation_of_one_trainer(folder, capsys):
    assert trainers.main(["--bibtex", "nnSSLContrastiveGRTrainer"]) == 0
    assert capsys.readouterr().out.startswith("@inproceedings{chen2020simple,")


@pytest.mark.parametrize("name", sorted(find_configs()))
def test_every_citation_is_one_entry(name, capsys):
    assert trainers.main(["--bibtex", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith("@")
    assert text.count("{") == text.count("}") > 3


@pytest.mark.parametrize(
    ("about", "message"),
    [("{summary: x}", "has no about.bibtex"), ("{bibtex: }", "has no about.bibtex")],
)
def test_no_citation(folder, about, message):
    (folder / "nnSSLPlainTrainer.yaml").write_text(f"kind: pretrain\nabout: {about}\n")
    with pytest.raises(SystemExit, match=message):
        trainers.main(["--bibtex", "nnSSLPlainTrainer"])


def test_an_unknown_name_lists_near_ones(folder):
    with pytest.raises(SystemExit, match="did you mean 'nnSSLFinetuneTrainer'"):
        trainers.main(["--bibtex", "nnSSLFinetuneTrain"])


def test_the_list_loads_neither_torch_nor_nnunet():
    code = """
import sys
from nnssl.cli import trainers
assert trainers.main([]) == 0
heavy = {"torch", "numpy", "nnunetv2", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_knobs_of_a_trainer_are_printed(folder, capsys):
    (folder / "nnSSLMineTrainer.yaml").write_text(
        "extends: nnSSLContrastiveTrainer\ntraining: {num_epochs: 7}\n"
    )
    assert trainers.main(["--knobs", "nnSSLMineTrainer"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "training.num_epochs 7 an integer of at least 1 epochs of the run." in lines
    assert any(line.startswith("objective.temperature 0.1 a number above 0") for line in lines)
    assert any(line.startswith("views.global.count 2 ") for line in lines)


SHIPPED = sorted(name for name in find_configs() if find_configs()[name].is_relative_to(INSTALLED))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_knob_of_every_trainer_has_a_meaning(name, monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    knobs = trainers_shown.bind_whole(name)[1]
    assert len(knobs) > 20
    assert [knob.knob for knob in knobs if not knob.meaning] == []


def test_a_table_is_aligned_and_wraps_its_widest_column():
    text = table(("a", "long"), [("x", "word " * 8), ("yyy", "")], width=30)
    assert text.splitlines() == [
        "a    long",
        "---  -------------------------",
        "x    word word word word word",
        "     word word word",
        "yyy",
    ]


def test_every_default_is_allowed():
    for kind in ("pretrain", "finetune"):
        schema, given = schema_of(kind)
        for section in schema.values():
            section = getattr(section, "function", section)
            for function in section.values() if isinstance(section, dict) else [section]:
                for name, knob in find_knobs(function, given).items():
                    if knob.default is not REQUIRED:
                        assert fit(knob.default, knob.annotation) == knob.default, (function, name)


# ------------------------------------------------------------------ shown whole, checked, on pages


def test_a_trainer_is_shown_whole(folder, capsys):
    file = folder / "nnSSLMineTrainer.yaml"
    file.write_text("extends: nnSSLLocalContrastiveTrainer\ntraining: {num_epochs: 7}\n")
    assert trainers.main(["nnSSLMineTrainer"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "nnUNetv2_train DATASET CONFIGURATION FOLD -tr nnSSLMineTrainer" in text
    assert "paper Chaitanya et al., NeurIPS 2020" in text
    assert "weights nnSSLContrastiveTrainer: its finished run on the same fold" in text
    assert "labels none" in text
    assert f"file {file}, which extends nnssl_configs/pretrain/nnSSLLocal" in text
    for section in ("training", "sampling", "views", "objective", "probe"):
        assert f"Section {section} knob value allowed meaning" in text
    assert "training.num_epochs 7 an integer of at least 1 epochs of the run." in text
    assert "measured gain" not in text


def test_a_file_is_checked_as_a_run_would(folder, tmp_path_factory, capsys):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = elsewhere / "nnSSLMineTrainer.yaml"
    file.write_text("extends: nnSSLContrastiveTrainer\nobjective: {temperature: 0.2}\n")
    assert trainers.main(["--check", str(file)]) == 0
    assert "a run would take it, as a trainer of kind pretrain" in capsys.readouterr().out
    for knobs, message in (
        ("objective: {temprature: 0.2}", "did you mean 'temperature'"),
        ("objective: {temperature: 0}", "must be a number above 0"),
        ("training: {num_epochs: 1, warmup_epochs: 2}", "the run would end before its warm-up"),
        ("views: {global: {rotation: -1}}", "views.global.rotation"),
    ):
        file.write_text(f"extends: nnSSLContrastiveTrainer\n{knobs}\n")
        with pytest.raises(SystemExit, match=message):
            trainers.main(["--check", str(file)])
    with pytest.raises(SystemExit, match="is no file"):
        trainers.main(["--check", str(elsewhere / "nnSSLNone.yaml")])


def test_the_list_marks_a_broken_file(folder, capsys):
    (folder / "nnSSLBrokenTrainer.yaml").write_text("kind: [\n")
    trainers.main([])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["nnSSLBrokenTrainer", "BROKEN"] for line in lines)


def test_pages_are_up_to_date(monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    pages, there = make_pages(), {file.name: file for file in (DOCS / "trainers").iterdir()}
    hint = "run nnssl_trainers --pages docs/trainers"
    assert pages.keys() == there.keys(), hint
    for name, content in pages.items():
        assert there[name].read_text(encoding="utf-8") == content, f"{name}: {hint}"
    assert str(INSTALLED.parent) not in "".join(pages.values())


def test_every_knob_that_the_documentation_names_exists(monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    known = {knob.knob for name in SHIPPED for knob in trainers_shown.bind_whole(name)[1]}
    sections = {knob.partition(".")[0] for knob in known}
    text = (DOCS / "knobs.md").read_text() + (DOCS.parent / "README.md").read_text()
    named = {f"{s}.{k}" for s, k in re.findall(r"[`\" ](\w+)\.(\w+)", text) if s in sections}
    assert len(named) > 30
    groups = {knob.rpartition(".")[0].rpartition(".")[0] for knob in known}  # `objective.parts`
    assert named <= known | groups, named - known


def test_what_is_told_as_measured_stands_in_the_results():
    measured = read_yaml(INSTALLED / "measured.yaml")
    parts = re.split(r"^##+ (.+)$", (DOCS / "results.md").read_text(), flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for name, gain in measured["gains"].items():
        assert name in SHIPPED
        for figure in gain["figures"]:
            assert figure in sections[gain["section"]], (name, figure)
        shown = re.findall(r"[+-]?\d\.\d+", gain["text"])
        assert set(shown) <= set(" ".join(gain["figures"]).replace(" to ", " ").split())
    for name, cost in measured["costs"].items():
        assert name in SHIPPED
        assert f"{cost:.2f}" in sections["Cost"], name
