"""What all pictures share: colours, style, figures without a window, names as plain text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from nnssl.common.files import atomic_path

# Okabe and Ito's palette (2008), without yellow, which is too pale for lines
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#4d4d4d"  # of what others are compared with
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
    "svg.hashsalt": "nnssl",  # the same content, the same file
}


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


def save_figure(figure: Any, file: Path, dpi: int = 90) -> None:
    """Writes a figure as PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    with atomic_path(file) as part:  # `savefig` would draw twice where there is a layout
        FigureCanvasAgg(figure).print_png(part)


def escape_math(text: object) -> str:
    """A name in which matplotlib finds no formula."""
    return str(text).replace("$", r"\$")
