"""Which versions made a file: for checkpoints, conversions, studies."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from nnssl import __version__


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of nnssl and of the packages named, as far as they are installed."""
    found = {"python": platform.python_version(), "nnssl": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
