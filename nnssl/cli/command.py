"""What every command has: options, tables, an end with a result, one message or an interruption."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
import textwrap
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from nnssl.common.errors import is_expected, wants_traceback
from nnssl.nnunet.paths import PREPROCESSED, RAW, find_dataset_names, find_root

if TYPE_CHECKING:
    import torch

WORKERS = min(8, os.cpu_count() or 1)  # processes that a command starts where nobody says how many
T = TypeVar("T")


def command(
    name: str,
    description: str | None,
    add_options: Callable[[ArgumentParser], object] = lambda parser: None,
    *,
    example: str,
    resumes: bool = False,
    errors: tuple[type[Exception], ...] = (),
) -> Callable[[Callable[[Namespace], int | None]], Callable[..., int]]:
    """Makes an entry point of a function that does a command's work with its options.

    The entry point takes the arguments (those of the program, where none are given) and returns the
    exit code (None counts as 0). An expected error (`nnssl.common.errors`) or OSError ends the
    program with one message and status 1, an interruption with status 130, a closed standard output
    (`nnssl_study list | head`) with status 1 and no message.

    Args:
        name: the command, which begins every message.
        description: what `--help` says.
        add_options: adds the options to a parser.
        example: arguments of a typical call, with which `--help` ends.
        resumes: whether the same command goes on after an interruption; the user is told so.
        errors: further exceptions whose message speaks to the user.
    """

    def make_parser() -> ArgumentParser:
        parser = ArgumentParser(prog=name, description=description)
        add_options(parser)
        text = f"Example: {name} {example}".rstrip()
        parser.epilog = " ".join(filter(None, (parser.epilog, text)))
        return parser

    def decorate(work: Callable[[Namespace], int | None]) -> Callable[..., int]:
        @functools.wraps(work)
        def main(arguments: Sequence[str] | None = None) -> int:
            try:
                code = work(make_parser().parse_args(arguments))
                sys.stdout.flush()
            except KeyboardInterrupt:
                hint = "; the same command goes on where it stopped" if resumes else ""
                print(f"{name}: interrupted{hint}", file=sys.stderr)
                return 130
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _reader_has_gone():
                    return 1
                speaks = isinstance(error, (OSError, *errors)) or is_expected(error)
                if not speaks or wants_traceback():
                    raise
                sys.exit(f"{name}: {error}")
            return code or 0

        main.make_parser = make_parser  # type: ignore[attr-defined]
        return main

    return decorate


def dataset_id(text: str) -> int:
    """Number of a dataset that an option gives as nnU-Net's do: ``27``, or ``Dataset027_ACDC``."""
    found = re.fullmatch(r"(\d+)|Dataset(\d{3})_.+", text)
    if found is None:
        what = f"found {text!r}, allowed are a number (27) or a full name (Dataset027_ACDC)"
        raise ArgumentTypeError(what)
    number = int(found[1] or found[2])
    roots = filter(None, map(find_root, (RAW, PREPROCESSED)))
    known = find_dataset_names(number, *roots)
    if known and not text.isdecimal() and text not in known:
        raise ArgumentTypeError(f"there is no {text}; {number} is {', '.join(known)}")
    return number


def add_device(parser: ArgumentParser) -> None:
    """The option that names the device, as nnU-Net's commands spell it; see `find_device`."""
    text = "cpu, cuda or mps (cuda where there is one, else cpu)"
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help=text)


def find_device(options: Namespace) -> torch.device:
    """The device that is asked for, or the GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    usable = torch.cuda.is_available()
    if options.device == "cuda" and not usable:
        raise ValueError("no CUDA device is usable here; the CPU is asked for with -device cpu")
    return torch.device(options.device or ("cuda" if usable else "cpu"))


def warn(warnings: Iterable[str], word: str = "warning") -> None:
    """Prints one line per warning to standard error."""
    for warning in warnings:
        print(f"{word}: {warning}", file=sys.stderr)


def read_each(names: Iterable[str], read: Callable[[str], T]) -> tuple[dict[str, T], list[str]]:
    """Name -> what `read` gives, and what is wrong with the others: they hide none."""
    found, problems = {}, []
    for name in names:
        try:
            found[name] = read(name)
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def _reader_has_gone() -> bool:
    """Whether standard output is closed at its other end; it is silent from then on."""
    try:
        print(flush=True)  # a flush alone may have nothing left to fail on
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Aligns columns; all but the first are wrapped where the terminal is too narrow."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[1:]) > 20:
        widths[widths.index(max(widths[1:]), 1)] -= 1
    rule = ["-" * size for size in widths]
    return "\n".join(line for row in (header, rule, *rows) for line in _lines(row, widths))


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [
        textwrap.wrap(cell, size, break_on_hyphens=False) or [""]
        for cell, size in zip(row, widths, strict=True)
    ]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip()
        for parts in zip(*padded, strict=True)
    ]
