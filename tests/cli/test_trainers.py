"""`nnssl_trainers` lists what `-tr` accepts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nnssl.cli import trainers
from nnssl.cli.command import table
from nnssl.common.checks import REQUIRED, find_knobs, fit
from nnssl.config import find_configs
from nnssl.config.files import INSTALLED
from nnssl.training.factory import schema_of


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
    knobs = trainers.explain_trainer(name)
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
