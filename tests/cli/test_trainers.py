"""`nnssl_trainers` lists what `-tr` accepts."""

from __future__ import annotations

import pytest

from nnssl.cli import trainers
from nnssl.cli.table import table
from nnssl.config import find_configs


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


def test_a_table_is_aligned_and_wraps_its_widest_column():
    text = table(("a", "long"), [("x", "word " * 8), ("yyy", "")], width=30)
    assert text.splitlines() == [
        "a    long",
        "---  -------------------------",
        "x    word word word word word",
        "     word word word",
        "yyy",
    ]
