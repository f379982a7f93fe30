"""The tiny dataset of the training tests, for commands that read one."""

from __future__ import annotations

from tests.training.conftest import tiny_dataset, tiny_files, trainer_yaml

__all__ = ["tiny_dataset", "tiny_files", "trainer_yaml"]
