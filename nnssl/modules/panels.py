"""Panels: rows of small images that an objective has to show, each row with a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Row(NamedTuple):
    """Images side by side.

    Attributes:
        name: what they show.
        images: (n, H, W) of numbers, or (n, H, W, 3) of colours from 0 to 1.
        scale: what the numbers measure, from 0 up: a colour bar says so. Empty: grey values of
            images; in a column all rows of grey values have one scale.
    """

    name: str
    images: Tensor
    scale: str = ""


class Panel(NamedTuple):
    """Rows of equally many images, from above to below.

    Attributes:
        columns: names above the columns; none where that says nothing.
    """

    rows: list[Row]
    columns: Sequence[str] = ()
