"""The images without labels that a pre-training saw: patients, origins, thumbnails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.data.thumbnails import stacked
from nnssl.data.unlabelled.records import pools, read_records, recorded_patients
from nnssl.nnunet.images import CaseError


@dataclass(frozen=True)
class UnlabelledSeen:
    """What a checkpoint says of them; of an older version: none.

    Attributes:
        record: `cases.unlabelled` of the checkpoint.
        own: nnssl's folder of the configuration; None where it is not known.
    """

    record: Mapping[str, Any]
    own: Path | None

    @property
    def names(self) -> list[str]:
        """Identifiers, each with the name of its pool before it."""
        return [f"{n}/{i}" for n, of in self._images.items() for i in of["identifiers"]]

    @property
    def patients(self) -> set[tuple[str, str]]:
        """(dataset of origin, patient) of every image."""
        return recorded_patients(self.record)

    def thumbnails(self) -> np.ndarray:
        """(N, cells) in the order of `names`.

        Raises:
            CaseError: an image is gone or has changed since.
        """
        folders = pools(self.own) if self.own else {}
        made = []
        for name, of in self._images.items():
            records = read_records(folders[name]) if name in folders else []
            known = {r.identifier: r for r in records}
            for identifier, content in zip(of["identifiers"], of["contents"], strict=True):
                if identifier not in known or not known[identifier].content.startswith(content):
                    raise CaseError(f"image without label {name}/{identifier} is gone or changed")
                made.append(known[identifier].picture())
        return stacked(made)

    @property
    def _images(self) -> Mapping[str, Any]:
        images: Mapping[str, Any] = self.record.get("images", {})
        return images
