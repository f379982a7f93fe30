"""Plain tables for the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence


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
