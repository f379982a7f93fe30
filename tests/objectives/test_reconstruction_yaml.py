"""YAML files of the restoration family: what they name is what the objectives declare."""

from __future__ import annotations

import pytest

from nnssl.common.checks import plain
from nnssl.config import bind, read_config
from nnssl.objectives import OBJECTIVES
from nnssl.training.pretraining_setup import GIVEN, SCHEMA

FAMILY = {
    "nnSSLMAETrainer": "mae",
    "nnSSLSparkTrainer": "spark",
    "nnSSLModelsGenesisTrainer": "models_genesis",
    "nnSSLPCRLv2Trainer": "pcrlv2",
}
ONLY = {
    "Shuffle": (0.5, 0, 0),
    "Nonlinear": (0, 0.9, 0),
    "Inpaint": (0, 0, 0.9),
    "Outpaint": (0, 0, 0.9),
}


@pytest.mark.parametrize(("stem", "name"), FAMILY.items())
def test_the_file_binds_and_repeats_the_objectives_own_views(stem: str, name: str) -> None:
    config = bind(read_config(stem), SCHEMA, GIVEN, overrides="")
    assert config.chosen("objective")[0] == name
    objective = OBJECTIVES[name]
    assert config.sections["views"].keys() == objective.default_views.keys()
    for group, knobs in objective.default_views.items():
        written = config.sections["views"][group]
        assert {knob: written[knob] for knob in knobs} == plain(knobs)
    assert {"family", "summary", "paper", "dimensions", "trains", "bibtex"} <= set(config.about)
    assert objective.decodes


@pytest.mark.parametrize(("variant", "probabilities"), ONLY.items())
def test_ablations_leave_one_deformation(variant: str, probabilities: tuple[float, ...]) -> None:
    stem = f"nnSSLModelsGenesis{variant}Trainer"
    knobs = bind(read_config(stem), SCHEMA, GIVEN, overrides="").chosen("objective")[1]
    assert tuple(knobs[k] for k in ("shuffle", "nonlinear", "paint")) == probabilities
    if knobs["paint"]:
        assert knobs["outpaint"] == (variant == "Outpaint")


def test_the_variant_with_positions_is_models_genesis_otherwise() -> None:
    plain_one, variant = (
        bind(read_config(f"nnSSLModelsGenesis{name}Trainer"), SCHEMA, GIVEN, overrides="")
        for name in ("", "Position")
    )
    assert variant.chosen("objective")[1] == {**plain_one.chosen("objective")[1], "position": 1.0}
    assert variant.sections["views"] == plain_one.sections["views"]
    assert variant.sections["training"] == plain_one.sections["training"]
