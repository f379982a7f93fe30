"""What the probe knows of a fold: its cases, where they lie, and the network that is planned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.data.case_table import Case, PositionAxis, read_case_table
from nnssl.data.labels import LabelBudget, Labelled, choose_labelled
from nnssl.nnunet.cases import CaseRecord, read_cases
from nnssl.nnunet.paths import plans_file
from nnssl.nnunet.planned_network import check_supported, refuse_cascade
from nnssl.nnunet.plans import read_description, read_plans
from nnssl.nnunet.splits import check_fold, read_fold


@dataclass(frozen=True)
class ProbeFold:
    """One fold of one configuration, its training and its validation cases.

    Attributes:
        fold: its number, or `all`.
        folder: nnU-Net's preprocessed folder of the configuration (`data_identifier`).
        partitions: parts of a volume that the pictures colour.
        position_axis: knob of the sampling, see `read_case_table`.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    folder: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    partitions: int = 4
    position_axis: PositionAxis = "head_feet"

    @classmethod
    def find(cls, dataset: str, configuration: str, fold: int, plans: str) -> ProbeFold:
        """A preprocessed dataset's fold, found as nnU-Net finds it.

        Raises:
            ValueError: the variable is not set, or a file, configuration or fold is missing.
        """
        file = plans_file(dataset, plans)
        base, content = file.parent, read_plans(file, configuration)
        manager = PlansManager(content).get_configuration(configuration)
        check_supported(manager)
        refuse_cascade(manager, configuration)
        folder = base / manager.data_identifier
        check_fold(folder, fold)
        train, val = map(tuple, read_fold(base, fold))
        described = read_description(base)
        return cls(content, described, configuration, fold, folder, train, val)

    @cached_property
    def manager(self) -> PlansManager:
        return PlansManager(self.plans)

    @cached_property
    def configuration_manager(self) -> Any:
        return self.manager.get_configuration(self.configuration)

    def read_records(self, cases: Iterable[str]) -> dict[str, CaseRecord]:
        """Patient and origin of cases."""
        return read_cases(self.folder.parent, cases)

    def read_table(self, cases: Iterable[str]) -> list[Case]:
        """Shape, patient, origin and position axis of cases, numbered together."""
        transpose, reader = self.plans["transpose_forward"], self.plans["image_reader_writer"]
        return read_case_table(self.folder, cases, transpose, self.position_axis, reader)

    def draw_labelled(self, patients: int, seeds: Sequence[int]) -> list[Labelled]:
        """So many labelled training patients, once per seed, in the nested order of fine-tuning."""
        records = self.read_records(self.train)
        return [
            choose_labelled(LabelBudget(patients=patients, seed=seed), self.train, records)
            for seed in seeds
        ]

    def choose_validation(self, most: int, drawn: Iterable[Labelled]) -> list[str]:
        """At most so many validation cases, of as many patients as possible.

        With fold `all` these are training cases too; those of the drawn patients are left out.
        """
        records = self.read_records(self.val)
        fitted = {patient for labelled in drawn for patient in labelled.patients}
        cases = [case for case in self.val if records[case].patient not in fitted]
        if len(cases) <= most:
            return sorted(cases)
        return choose_labelled(LabelBudget(volumes=most), cases, records).cases
