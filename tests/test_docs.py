"""What README and tutorial tell to type exists; what their figure shows stands in the results."""

from __future__ import annotations

import importlib
import re
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from nnssl.config.files import find_configs

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/tutorial.md")
ENTRY = re.compile(r'"(nnssl_\w+) = ([\w.]+):main"')
MAINS = dict(ENTRY.findall((ROOT / "setup.py").read_text(encoding="utf-8")))


def read_commands(page: str) -> list[list[str]]:
    """Lines of code blocks, without variables before them and comments behind."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    found = []
    for words in lines:
        while words and re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
            words = words[1:]
        found += [words] if words else []
    return found


COMMANDS = [(page, words) for page in PAGES for words in read_commands(page)]
OURS = [(page, words) for page, words in COMMANDS if words[0] in MAINS]


class ParsedError(Exception):
    """The arguments were understood; the work does not begin."""


@pytest.mark.parametrize(("page", "words"), OURS, ids=[f"{p}: {' '.join(w)}" for p, w in OURS])
def test_every_command_of_a_page_is_understood(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = ArgumentParser.parse_args

    def stop(self: ArgumentParser, arguments: list[str] | None = None) -> Namespace:
        parse(self, arguments)
        raise ParsedError

    monkeypatch.setattr(ArgumentParser, "parse_args", stop)
    with pytest.raises(ParsedError):
        importlib.import_module(MAINS[words[0]]).main(words[1:])


def test_commands_and_trainers_of_the_pages_exist() -> None:
    for page, words in COMMANDS:
        assert words[0] in MAINS or not words[0].startswith("nnssl"), (page, words)
        for name in re.findall(r"nnSSL\w+Trainer", " ".join(words)):
            assert name in find_configs(), (page, name)
    tutorial = [words[0] for page, words in COMMANDS if page == "docs/tutorial.md"]
    order = [tutorial.index(n) for n in ("nnssl_convert", "nnssl_estimate", "nnUNetv2_train")]
    assert order == sorted(order)  # how long it takes is asked before


def test_the_figure_of_the_readme_shows_measured_results() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = (ROOT / "docs" / "figures" / "labels_and_dice.csv").read_text(encoding="utf-8")
    for line in rows.splitlines()[1:]:
        assert line.split(",")[2] in results, line
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/figures/labels_and_dice.svg" in readme
