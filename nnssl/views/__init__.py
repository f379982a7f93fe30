"""Views: augmented versions of an image, with the matrix that leads back to it."""

from __future__ import annotations

from nnssl.views.random_view import RandomView, View

__all__ = ["RandomView", "View"]
