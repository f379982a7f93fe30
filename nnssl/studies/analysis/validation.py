"""nnU-Net's validation of a run: the scores, images and structures that its files tell."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnssl.common.files import read_json
from nnssl.nnunet.paths import DATASET_FILE, PREPROCESSED, REFERENCES, SUMMARY, find_root


@dataclass(frozen=True)
class Validation:
    """Reads the files of a fold's folder; what was moved since is found again."""

    fold: Path

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Case -> structure key (`1`, `(1, 2)`) -> Dice, of `validation/summary.json`."""
        try:
            return {
                _split_name(entry["prediction_file"])[0]: {
                    key: float("nan") if metrics["Dice"] is None else float(metrics["Dice"])
                    for key, metrics in entry["metrics"].items()
                }
                for entry in self._entries
            }
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.fold / SUMMARY} is no summary of nnU-Net (no {error}); delete it and "
                "validate again (nnUNetv2_train ... --val)"
            ) from error

    @property
    def files(self) -> dict[str, tuple[Path, Path]]:
        """Case -> (predicted, reference) label image; ValueError where one is gone."""
        found = {}
        for entry in self._entries:
            case, ending = _split_name(entry["prediction_file"])
            predicted = self.fold / SUMMARY.parent / f"{case}{ending}"
            reference = Path(entry["reference_file"])
            if not reference.is_file() and self.preprocessed is not None:
                reference = self.preprocessed / REFERENCES / predicted.name
            for path in (predicted, reference):
                if not path.is_file():
                    raise ValueError(
                        f"{path} does not exist, so HD95 and surface Dice cannot be computed. "
                        "Validate the run again (nnUNetv2_train ... --val), or set "
                        "nnUNet_preprocessed to the folder that holds the reference segmentations"
                    )
            found[case] = (predicted, reference)
        return found

    @cached_property
    def preprocessed(self) -> Path | None:
        """`nnUNet_preprocessed/DatasetXXX_NAME`; None where it is gone."""
        root = find_root(PREPROCESSED)
        here = [root / self.fold.parents[1].name] if root else []
        if (self.fold / SUMMARY).is_file():
            here = [Path(e["reference_file"]).parents[1] for e in self._entries[:1]] + here
        return next((folder for folder in here if folder.is_dir()), None)

    @property
    def structures(self) -> dict[str, str]:
        """Structure key -> its name in `dataset.json`."""
        return {
            str(tuple(value) if isinstance(value, list) else value): name
            for name, value in self._labels.items()
            if name != "ignore"
        }

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Structure key -> the label values that make it up, for every key of the scores."""
        keys = sorted({key for case in self.scores.values() for key in case})
        values = {key: ast.literal_eval(key) for key in keys}
        return {k: v if isinstance(v, tuple) else (int(v),) for k, v in values.items()}

    @property
    def ignore_label(self) -> int | None:
        """The dataset's ignore label, if it has one."""
        return self._labels.get("ignore")

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        return read_json(self.fold / SUMMARY)["metric_per_case"]

    @cached_property
    def _labels(self) -> dict[str, Any]:
        path = self.fold.parent / DATASET_FILE
        return read_json(path).get("labels", {}) if path.is_file() else {}


def _split_name(file: str) -> tuple[str, str]:
    """Stem and ending of the name of an image."""
    name = file.replace("\\", "/").rsplit("/", 1)[-1]
    for ending in (".nii.gz", Path(name).suffix):
        if ending and name.endswith(ending):
            return name[: -len(ending)], ending
    return name, ""
