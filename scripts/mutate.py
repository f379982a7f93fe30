"""Do the tests bite? Changes the code in one place at a time and counts what no test notices.

usage: python scripts/mutate.py ROOM [ROOM ...] [--count 30] [--seed 0]

Works on a copy; the tests of a room (see ROOMS) run with `-x` and a time-out, those of the changed
file first, forked from a process that has torch loaded already. A fixed seed draws the same mutants
of the same code. Prints every survivor: kill it with a test, or write down why it changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("nnssl", "nnssl_configs", "tests", "scripts", "pyproject.toml")
ROOMS: dict[str, tuple[list[str], list[str]]] = {  # room -> files, tests
    "losses": (["nnssl/losses"], ["tests/losses"]),
    "objectives": (["nnssl/objectives"], ["tests/objectives"]),
    "views": (["nnssl/views"], ["tests/views"]),
    "sampling": (["nnssl/data/sampling.py"], ["tests/data/test_sampling.py"]),
    "loader": (["nnssl/data/stepped_loader.py"], ["tests/data/test_stepped_loader.py"]),
    "weights": (["nnssl/finetuning"], ["tests/finetuning"]),
    "leakage": (["nnssl/leakage"], ["tests/leakage"]),
    "statistics": (["nnssl/studies/analysis/statistics.py"], ["tests/studies/test_statistics.py"]),
}
FEWER = "not two_processes and not two_ranks"  # these import the code anew, seconds each
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Add, ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd,
}  # fmt: skip


def find_places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that can be changed: not in docstrings, annotations, messages or imports."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Raise, ast.JoinedStr, ast.arg)):
            continue
        if mutate(copy.deepcopy(node)) is not None:
            yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            pending += [
                v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)
            ]


def mutate(node: ast.AST) -> ast.AST | None:
    """Changes a node in its place; None where nothing can be changed."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif (
        isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign, ast.UnaryOp))
        and type(node.op) in SWAPS
    ):
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, (ast.If, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        node.value = node.value + 1
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        node.value = ast.Constant(None)
    elif isinstance(node, ast.Return) and node.value is not None:
        if isinstance(node.value, ast.Constant) and node.value.value is None:
            return None
        node.value = ast.Constant(None)
    else:
        return None
    return node


def draw_mutants(files: list[Path], count: int, seed: int) -> list[tuple[Path, int, str, str]]:
    """File, line, what was changed, and the file's new text."""
    places = [
        (file, number)
        for file in files
        for number, _ in enumerate(find_places(ast.parse(file.read_text())))
    ]
    chosen = random.Random(seed).sample(places, min(count, len(places)))
    mutants = []
    for file, number in sorted(chosen):
        tree = ast.parse(file.read_text())
        node = list(find_places(tree))[number]
        before = ast.unparse(node).splitlines()[0]
        mutate(node)
        text = ast.unparse(ast.fix_missing_locations(tree))
        after = ast.unparse(node).splitlines()[0]
        mutants.append((file, node.lineno, f"{before}  ->  {after}", text))
    return mutants


def run_tests(folder: Path, tests: list[str], seconds: float) -> str:
    """`passed`, `failed` or `too long`, in a forked process of its own group."""
    child = os.fork()
    if child == 0:
        os.setpgrp()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)
        import pytest

        with (
            Path(os.devnull).open("w") as null,
            redirect_stdout(null),
            redirect_stderr(io.StringIO()),
        ):
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", FEWER, *tests])
        os._exit(int(code))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rooms", nargs="+", choices=ROOMS, metavar="ROOM", help=", ".join(ROOMS))
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer  # noqa: F401
    import torch  # noqa: F401

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in COPIED:
            copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copied(ROOT / name, folder / name)
        for room in options.rooms:
            try_room(folder, room, options.count, options.seed)
    return 0


def try_room(folder: Path, room: str, count: int, seed: int) -> None:
    sources, tests = ROOMS[room]
    files = [
        f
        for s in sources
        for f in sorted((folder / s).rglob("*.py") if (folder / s).is_dir() else [folder / s])
    ]
    begin = time.monotonic()
    if run_tests(folder, tests, 900) != "passed":
        raise SystemExit(f"{room}: the tests fail without any change")
    limit = 20 + 3 * (time.monotonic() - begin)
    print(f"{room}: tests take {time.monotonic() - begin:.0f} s", flush=True)
    mutants, survived = draw_mutants(files, count, seed), 0
    for file, line, what, text in mutants:
        kept = file.read_text()
        file.write_text(text)
        own = [f"{each}/test_{file.stem}.py" for each in tests]
        first = [each for each in own if (folder / each).exists()]
        outcome = run_tests(folder, [*first, *tests], limit)
        file.write_text(kept)
        survived += outcome == "passed"
        if outcome == "passed":
            print(f"  survived {file.relative_to(folder)}:{line}  {what}", flush=True)
    print(
        f"{room}: {len(mutants)} tried, {len(mutants) - survived} killed, {survived} survived",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
