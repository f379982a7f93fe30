"""HTML pages that need no other file: no script, no address outside, all text escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReportTable:
    """A table of texts.

    Attributes:
        title: heading.
        rows: column -> text; all with the same columns.
        note: how to read it.
    """

    title: str
    rows: list[dict[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure of a page."""

    name: str  # stem of its file
    title: str
    caption: str  # what it shows, for a reader who did not run it
    data: bytes
    kind: str = "svg+xml"  # or png

    @property
    def address(self) -> str:
        """The picture as a `data:` address, so that the page needs no other file."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


def render_page(package: str, template: str, **content: Any) -> str:
    """A template of a package, which extends `page.html.j2`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(each, "") for each in (package, "nnssl.common")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(**content)
