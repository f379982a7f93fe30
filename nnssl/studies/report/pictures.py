"""The look of all figures: colours that colour-blind readers tell apart, light, few lines."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnssl.studies.run.spec import SCRATCH

SCRATCH_COLOUR = "#4d4d4d"
# Okabe and Ito's palette (2008), without yellow, which is too pale for lines
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "nnssl",  # the same study, the same file
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: stem of its file.
        title: heading.
        caption: what it shows, for a reader who did not run the study.
        data: SVG or PNG.
        kind: `svg+xml` or `png`.
    """

    name: str
    title: str
    caption: str
    data: bytes
    kind: str = "svg+xml"

    @property
    def address(self) -> str:
        """The picture as a `data:` address, so that the report needs no other file."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


def choose_looks(methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Method -> `color` and `marker`; scratch is grey, the order decides the others."""
    others = [method for method in methods if method != SCRATCH]
    looks = {SCRATCH: {"color": SCRATCH_COLOUR, "marker": "X"}}
    for i, method in enumerate(others):
        looks[method] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    return looks


def make_panels(
    count: int, width: float = 5.0, height: float = 3.6, most: int = 2
) -> tuple[Any, list]:
    """A figure with this many panels, `most` of them side by side."""
    from matplotlib.figure import Figure

    columns = min(count, most)
    rows = (count + columns - 1) // columns
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def render(figure: Any, kind: str = "svg") -> bytes:
    """The figure as SVG (letters as outlines: no font is needed) or PNG."""
    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else None
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    return stream.getvalue()


def escape_math(text: str) -> str:
    """A name in which matplotlib finds no formula."""
    return str(text).replace("$", r"\$")
