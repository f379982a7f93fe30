"""`--help` of every command is quick and complete, and its example is one."""

from __future__ import annotations

import argparse
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points

import pytest

COMMANDS = [entry for entry in entry_points(group="console_scripts") if "nnssl.cli" in entry.value]
HEAVY = ("torch", "nnunetv2", "matplotlib", "sklearn", "scipy", "pandas", "SimpleITK", "numpy")
MOST_SECONDS = 1.0  # of processor time; 0.1 to 0.25 on an idle machine
of_every_command = pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)


def find_options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those of all subcommands too."""
    for option in parser._actions:
        if isinstance(option, argparse._SubParsersAction):
            for each in option.choices.values():
                yield from find_options(each)
        else:
            yield option


@of_every_command
def test_help_loads_nothing_heavy_and_is_quick(entry):
    module = entry.value.partition(":")[0]
    code = (
        f"import sys; from {module} import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert told.stdout.splitlines()[-1] == "loaded []"
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert spent < MOST_SECONDS


@of_every_command
def test_every_argument_has_a_sentence_and_the_example_parses(entry, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(name, raising=False)
    parser = entry.load().make_parser()
    for option in find_options(parser):
        bare = re.sub(r"\(?%\(default\)s\)?", "", option.help or "").strip(" ()")
        assert len(bare) > 2, option.option_strings or option.dest
    example = shlex.split(parser.epilog.partition("Example: ")[2])
    assert example[0] == entry.name
    parser.parse_args(example[1:])


def test_the_cluster_command_and_others_quote_what_is_true():
    """Texts and choices that stand for values of modules which `--help` does not load."""
    from nnssl.cluster_maps.fold_maps import DEFAULT_NAME
    from nnssl.cluster_maps.recipe import ClusterRecipe
    from nnssl.convert.phantom import SIZES
    from nnssl.convert.volumes import FourthAxis, Headers, Overlap
    from nnssl.data.pool.settings import PLANNER, POLICIES, WINDOW
    from nnssl.nnunet.plans import KEEPABLE

    def options(name: str) -> dict[str, argparse.Action]:
        parser = next(entry for entry in COMMANDS if entry.name == name).load().make_parser()
        return {option.dest: option for option in find_options(parser)}

    cluster, recipe = options("nnssl_cluster"), ClusterRecipe()
    assert cluster["name"].default == DEFAULT_NAME
    for name in ("source", "clusters", "seed", "samples", "scales", "position", "model", "size"):
        value = getattr(recipe, name)
        texts = [f"{each:g}" for each in value] if isinstance(value, tuple) else [str(value)]
        text = " ".join(texts).removesuffix(".0")
        assert f"({text}" in cluster[name].help
    assert f"({recipe.upsampling}" in cluster["upsampling"].help
    pool, convert = options("nnssl_pool"), options("nnssl_convert")
    assert pool["planner"].default == PLANNER
    assert tuple(pool["spacing"].choices) == tuple(POLICIES)
    assert "{:g} {:g}".format(*WINDOW) in pool["window"].help
    for name, kind in {"fourth_axis": FourthAxis, "headers": Headers, "overlap": Overlap}.items():
        assert convert[name].choices == kind.__args__
    assert options("nnssl_plan_like")["keep"].choices == KEEPABLE
    assert tuple(options("nnssl_phantom")["size"].choices) == tuple(SIZES)
