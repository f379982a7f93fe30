"""Views of patches: named augmented versions, made on the batch's own device."""

from __future__ import annotations

from nnssl.views.random_view import RandomView
from nnssl.views.view import View

VIEWS: dict[str, type] = {"random": RandomView}

__all__ = ["VIEWS", "RandomView", "View"]
