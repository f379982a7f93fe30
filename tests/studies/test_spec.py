"""Studies are read, checked at once, and found beside the trainers without being one."""

from __future__ import annotations

import pytest

from nnssl.config import find_configs
from nnssl.studies.run import spec
from nnssl.studies.run.spec import find_studies, find_waiting, read_study, slug

SHIPPED = (
    "chaitanya",
    "claim",
    "contrastive",
    "hippocampus",
    "predictive",
    "quick",
    "radiossl",
    "schedules",
    "semi_supervised",
    "ssl_medseg",
    "taleb",
    "universal",
)
WRONG = """
kind: study
study:
  dataset: 27
  budgetts: [1]
  budgets: few
  unit: patient
pretraining:
  G^D: {trainer: nnSSLContrastiveTrainer, seed: 3}
schedules:
  standard: {overrides: [1]}
"""
MEANT_WRONG = """
kind: study
study: {dataset: 27, budgets: [2, 0.5], unit: slices, configuration: 3d_fullres}
pretraining:
  G^D: {trainer: nnSSLContrastveTrainer}
  g d: {trainer: nnSSLContrastiveTrainer, overrides: {seed: 1}}
  G D: {trainer: nnSSLNoneTrainer, waits: trainer}
  Scratch: {trainer: nnSSLContrastiveTrainer}
schedules:
  standard: {overrides: {labels.patients: 2}}
"""


def test_the_shipped_studies_are_read_and_are_no_trainers(monkeypatch):
    monkeypatch.setenv("nnssl_configs", "")
    assert set(SHIPPED) == set(find_studies())
    for name in SHIPPED:
        study = read_study(name)
        assert study.name == name
        assert study.summary
        assert study.paper
        assert study.differs
    assert not set(SHIPPED) & set(find_configs())


def test_signatures_tell_every_problem_at_once(write_study):
    file = write_study(WRONG)
    with pytest.raises(ValueError, match="has 5 problems") as caught:
        read_study(file)
    for text in (
        "study.budgetts = [1] in",
        "did you mean 'budgets'?",
        "study.budgets = 'few'",
        "study.unit = 'patient'",
        "one of 'patients', 'volumes', 'slices', 'percentage'",
        "pretraining.G^D.seed = 3",
        "schedules.standard.overrides = [1]",
        str(file),
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("knob", "allowed"),
    [
        ("budgets: []", "a list (not empty, none twice), each a number above 0"),
        ("budgets: [2, 2]", "none twice"),
        ("budgets: [0]", "each a number above 0"),
        ("folds: []", "a list (not empty, none twice), each an integer of at least 0"),
        ("folds: [-1]", "each an integer of at least 0"),
        ("repetitions: 0", "an integer of at least 1"),
    ],
)
def test_bounds_of_the_grid(write_study, knob, allowed):
    given = knob if "budgets" in knob else f"budgets: [1], {knob}"
    text = f"kind: study\nstudy: {{dataset: 1, {given}}}\nschedules: {{a: {{}}}}\n"
    with pytest.raises(ValueError, match="has 1 problem") as caught:
        read_study(write_study(text))
    assert allowed in str(caught.value)


def test_every_arm_has_a_seed(write_study):
    text = "kind: study\nstudy: {dataset: 1, budgets: [1]}\nschedules: {a: {}}\n"
    arm = "pretraining: {X: {trainer: nnSSLContrastiveTrainer, seeds: []}}\n"
    with pytest.raises(ValueError, match=r"pretraining\.X\.seeds = \[\] .* \(not empty\)"):
        read_study(write_study(text + arm))


def test_what_signatures_cannot_say_is_told_at_once(write_study):
    with pytest.raises(ValueError, match="has 7 problems") as caught:
        read_study(write_study(MEANT_WRONG))
    for text in (
        "study.budgets: found 0.5 slices",
        "slices with configuration '3d_fullres'; allowed with 2d only",
        "pretraining.G D: its folders would be named 'g_d' as 'g d'",
        "pretraining.Scratch: its folders would be named 'scratch'",
        "did you mean 'nnSSLContrastiveTrainer'",
        "pretraining.g d.overrides.seed: set by the study itself",
        "schedules.standard.overrides.labels.patients: set by the study itself",
    ):
        assert text in str(caught.value)


def test_percentages_may_be_fractions_up_to_all(write_study):
    text = "kind: study\nstudy: {dataset: 1, unit: percentage, budgets: [2.5, 100]}\n"
    assert read_study(write_study(text + "schedules: {a: {}}")).budgets == (2.5, 100)
    with pytest.raises(ValueError, match="found 101 percentage"):
        read_study(write_study(text.replace("100", "101") + "schedules: {a: {}}"))


def test_an_arm_waits_until_its_trainer_exists(write_study, tmp_path, monkeypatch):
    text = "kind: study\nstudy: {dataset: 1, budgets: [1]}\nschedules: {a: {}}\npretraining:\n"
    later = "  X: {trainer: nnSSLLaterTrainer, waits: trainer}\n"
    pool = "  P: {trainer: nnSSLContrastiveTrainer, waits: dataset}\n"
    study = read_study(write_study(text + later + pool))
    assert set(find_waiting(study)) == {"X", "P"}
    with pytest.raises(ValueError, match="no such trainer"):
        read_study(write_study(text + later.replace(", waits: trainer", "")))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "nnSSLLaterTrainer.yaml").write_text("extends: nnSSLContrastiveTrainer")
    monkeypatch.setenv("nnssl_configs", str(tmp_path / "own"))
    given = pool.replace("waits", "dataset: 30, waits")
    assert find_waiting(read_study(write_study(text + later + given))) == {}


def test_a_users_studies_come_first(write_study, tmp_path, monkeypatch):
    folder = tmp_path / "own" / "studies"
    folder.mkdir(parents=True)
    write_study().rename(folder / "quick.yaml")
    monkeypatch.setenv("nnssl_configs", str(tmp_path / "own"))
    assert read_study("quick").summary == "small"
    assert "quick" not in find_configs()
    with pytest.raises(ValueError, match=r"no study 'quik' \(did you mean 'quick'\?\); known: "):
        read_study("quik")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_written_is_read_again(name, tmp_path):
    study = read_study(name)
    spec.write_study(tmp_path / "study.yaml", study)
    assert read_study(tmp_path / "study.yaml") == study


def test_names_become_folder_names():
    names = {"G^D": "gd", "G^D-": "gdminus", "Models Genesis": "models_genesis", "a/../b": "a_.._b"}
    assert {name: slug(name) for name in names} == names
