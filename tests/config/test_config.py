"""A YAML file is checked against signatures; every problem is named at once, with its file."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest
import yaml
from annotated_types import Interval, MinLen, MultipleOf

from nnssl.common.checks import (
    Count,
    Fraction,
    MismatchError,
    Positive,
    Rule,
    checked,
    describe,
    find_knobs,
    fit,
)
from nnssl.config import Config, Groups, bind, complete, find_configs, read_config
from nnssl.config.aliases import ALIASES, rename_knobs, warn

if TYPE_CHECKING:
    from nowhere import Network

RISING = Rule(lambda pair: pair[0] <= pair[1], "rising")
INSTALLED = Path(__file__).parents[2] / "nnssl_configs"


@dataclasses.dataclass(frozen=True)
class Training:
    num_epochs: int = 400
    initial_lr: float = 1e-3
    patch_size: Sequence[int] | None = None
    overwrite: bool = False
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Contrastive:
    def __init__(
        self,
        network: Network,
        *,
        temperature: float,
        pairs: Literal["across", "within"] = "across",
        pool: Optional[str] = None,  # noqa: UP045
    ) -> None: ...


class Restoration:
    def __init__(self, network: Network, *, mask_ratio: float = 0.6) -> None: ...


class RandomView:
    def __init__(
        self, *, count: int = 2, rotation: float = 15.0, scale: tuple[float, float] = (0.8, 1.25)
    ) -> None: ...


SCHEMA = {
    "training": Training,
    "views": Groups(RandomView),
    "objective": {"contrastive": Contrastive, "restoration": Restoration},
}
BASE = """
kind: pretrain
about: {family: test, summary: a test}
training: {num_epochs: 7, initial_lr: 1e-2}
views:
  global: {count: 3}
  local: {rotation: 90}
objective: {name: contrastive, temperature: 0.1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("nnssl_configs", str(tmp_path))
    monkeypatch.delenv("nnssl_overrides", raising=False)
    (tmp_path / "nnSSLBase.yaml").write_text(BASE)
    return tmp_path


@pytest.fixture
def write(folder) -> Callable[[str, str], Path]:
    def write_file(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def bound(name: str = "nnSSLBase", overrides: str = "") -> Config:
    return bind(read_config(name), SCHEMA, given=("network",), overrides=overrides)


def error_of(action: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the tests look into the message)
        action()
    return str(caught.value)


# ---------------------------------------------------------------- checking


def test_defaults_are_filled_in(folder):
    config = bound()
    assert config.sections == {
        "training": {
            "num_epochs": 7,
            "initial_lr": 0.01,
            "patch_size": None,
            "overwrite": False,
            "parts": {},
        },
        "views": {
            "global": {"count": 3, "rotation": 15.0, "scale": [0.8, 1.25]},
            "local": {"count": 2, "rotation": 90.0, "scale": [0.8, 1.25]},
        },
        "objective": {"name": "contrastive", "temperature": 0.1, "pairs": "across", "pool": None},
    }
    assert list(config.sections["training"]) == [
        field.name for field in dataclasses.fields(Training)
    ]
    assert config.chosen("objective") == (
        "contrastive",
        {"temperature": 0.1, "pairs": "across", "pool": None},
    )


def test_every_problem_is_named_at_once_with_file_section_knob_value_and_allowed(write):
    path = write(
        "nnSSLWrong.yaml",
        """
extends: nnSSLBase
training: {num_epochs: ten, num_epoch: 3, overwrite: 1}
view: {}
views: {global: {scale: [1.0]}, other: {kind: fixed}}
objective: {pairs: among, network: mine}
""",
    )
    message = error_of(lambda: bound("nnSSLWrong"))
    lines = message.splitlines()
    assert lines[0] == "nnSSLWrong has 8 problems:"
    for expected in (
        f"training.num_epochs = 'ten' in {path}: must be an integer",
        f"training.num_epoch = 3 in {path}: unknown knob (did you mean 'num_epochs'?); "
        "allowed: num_epochs, initial_lr, patch_size, overwrite, parts",
        f"training.overwrite = 1 in {path}: must be true or false",
        f"view in {path}: unknown section (did you mean 'views'?); "
        "allowed: training, views, objective",
        f"views.global.scale = [1.0] in {path}: must be a list [a number, a number]",
        f"views.other.kind = 'fixed' in {path}: unknown knob; allowed: count, rotation, scale",
        f"objective.pairs = 'among' in {path}: must be one of 'across', 'within'",
        f"objective.network = 'mine' in {path}: unknown knob; allowed: temperature, pairs, pool",
    ):
        assert f"  {expected}" in lines


def test_a_problem_names_the_file_that_wrote_it_not_the_one_that_inherits_it(write, folder):
    write("nnSSLBase.yaml", BASE.replace("num_epochs: 7", "num_epochs: many"))
    write("nnSSLChild.yaml", "extends: nnSSLBase\ntraining: {initial_lr: fast}\n")
    message = error_of(lambda: bound("nnSSLChild"))
    assert f"num_epochs = 'many' in {folder / 'nnSSLBase.yaml'}" in message
    assert f"initial_lr = 'fast' in {folder / 'nnSSLChild.yaml'}" in message


def test_a_knob_without_default_is_demanded(write):
    write("nnSSLBase.yaml", BASE.replace(", temperature: 0.1", ""))
    assert "nnSSLBase.yaml: is missing; must be a number" in error_of(bound)


@pytest.mark.parametrize("section", ["objective: {temperature: 0.1}", "objective: {name: other}"])
def test_a_choice_must_be_known(write, section):
    write(
        "nnSSLBase.yaml", BASE.replace("objective: {name: contrastive, temperature: 0.1}", section)
    )
    assert "allowed: contrastive, restoration" in error_of(bound)


@pytest.mark.parametrize("section", ["training: 3", "views: [1]", "views: {global: 3}"])
def test_a_section_must_be_a_mapping(write, section):
    write("nnSSLOdd.yaml", f"kind: pretrain\nobjective: {{name: restoration}}\n{section}\n")
    assert "must be a mapping" in error_of(lambda: bound("nnSSLOdd"))


VALUES = [
    (3, int, 3),
    (3, float, 3.0),
    (True, bool, True),
    ("a", str, "a"),
    (None, int | None, None),
    (3, int | None, 3),
    (3, float | str, 3.0),
    (3, float | int, 3),
    ([1, 2], Sequence[int], [1, 2]),
    ((1, 2), list[float], [1.0, 2.0]),
    ([1, 2], tuple[float, float], [1.0, 2.0]),
    ([1, 2, 3], tuple[int, ...], [1, 2, 3]),
    ([[1, 2]], list[tuple[int, int]], [[1, 2]]),
    (["a", 1], list, ["a", 1]),
    ({"encoder": 1}, Mapping[str, float], {"encoder": 1.0}),
    ({"encoder": 1}, dict, {"encoder": 1}),
    ("cosine", Literal["cosine", "poly"], "cosine"),
    ("auto", float | Literal["auto"], "auto"),
    ({"a": (1, 2)}, Any, {"a": [1, 2]}),
]


@pytest.mark.parametrize(("value", "annotation", "expected"), VALUES)
def test_fitting_values(value, annotation, expected):
    result = fit(value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "allowed"),
    [
        (True, int, "an integer"),
        (True, float, "a number"),
        (1, bool, "true or false"),
        (1.5, int, "an integer"),
        ("3", int, "an integer"),
        (None, int, "an integer"),
        (3, str, "a text"),
        (0, None, "null"),
        (1, Literal[True, "yes"], "one of True, 'yes'"),
        ("b", int | None, "an integer or null"),
        ("b", list[int] | None, "a list, each an integer, or null"),
        ("ab", Sequence[str], "a list, each a text"),
        ([1, "b"], list[int], "a list, each an integer"),
        ([1], tuple[int, int], "a list [an integer, an integer]"),
        ({"a": "b"}, dict[str, int], "a mapping, each an integer"),
        ([1], dict[str, int], "a mapping, each an integer"),
    ],
)
def test_wrong_values_say_what_is_allowed(value, annotation, allowed):
    assert describe(annotation) == allowed
    with pytest.raises(MismatchError, match=f"^must be {re.escape(allowed)}$"):
        fit(value, annotation)


def test_inherited_constructors_and_annotations_for_type_checkers_only():
    class Child(Restoration):
        pass

    assert list(find_knobs(Child, given=("network",))) == ["mask_ratio"]
    assert find_knobs(Child, given=("network",))["mask_ratio"].annotation is float


BOUNDS = [
    (0, Positive, "a number above 0"),
    (float("nan"), Positive, "a number above 0"),
    (float("inf"), float, "a number"),
    (0, Count, "an integer of at least 1"),
    (0.5, Count, "an integer of at least 1"),
    (-1, Count | None, "an integer of at least 1 or null"),
    (1.1, Fraction, "a number from 0 to 1"),
    (1.0, Annotated[float, Interval(gt=0, lt=1)], "a number above 0 and below 1"),
    (3, Annotated[int, MultipleOf(2)], "an integer (a multiple of 2)"),
    ([], Annotated[list[Positive], MinLen(1)], "a list (not empty), each a number above 0"),
    ([0.0], list[Positive], "a list, each a number above 0"),
    ("", Annotated[str, MinLen(1)], "a text (not empty)"),
    ([2, 1], Annotated[tuple[float, float], RISING], "a list [a number, a number] (rising)"),
]


@pytest.mark.parametrize(("value", "annotation", "allowed"), BOUNDS)
def test_bounds_are_a_part_of_the_annotation(value, annotation, allowed):
    with pytest.raises(MismatchError, match=f"^must be {re.escape(allowed)}$"):
        fit(value, annotation)


def test_values_on_and_within_bounds_fit():
    assert fit(1, Fraction) == 1.0
    assert fit(1, Count) == 1
    assert fit(None, Count | None) is None
    assert fit([1, 2], Annotated[tuple[float, float], RISING]) == [1.0, 2.0]


# ---------------------------------------------------------------- calls from code


@checked
@dataclasses.dataclass(frozen=True)
class Labels:
    patients: Count | None = None
    cases: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.patients is not None and self.cases:
            raise ValueError("one of patients and cases")


@checked
class Drawn:
    def __init__(self, network: Network, /, count: Any = 1, *, shift: Fraction = 0.1) -> None:
        self.network, self.shift = network, shift


def test_a_call_from_code_is_checked_like_a_file():
    assert Labels(2).patients == Labels(patients=2).patients == 2
    assert Labels(cases=("a",)).cases == ("a",)  # nothing is converted
    for call in (lambda: Labels(0, [3]), lambda: Labels(patients=0, cases=[3])):
        assert error_of(call) == (
            "patients = 0 must be an integer of at least 1 or null; "
            "cases = [3] must be a list, each a text"
        )
    assert "one of patients and cases" in error_of(lambda: Labels(2, ["a"]))
    assert "shift = 2 must be" in error_of(lambda: Drawn(object(), shift=2))
    assert Drawn("network", shift=1).network == "network"
    with pytest.raises(TypeError, match="unexpected keyword"):
        Labels(patient=2)


def test_a_checked_class_keeps_its_signature_copies_and_pickles():
    assert list(find_knobs(Drawn, given=("network", "count"))) == ["shift"]
    assert pickle.loads(pickle.dumps(Labels(2))) == copy.deepcopy(Labels(2)) == Labels(2)
    assert "patients" in error_of(lambda: dataclasses.replace(Labels(2), patients=-1))


# ---------------------------------------------------------------- former spellings


@pytest.fixture
def aliases(monkeypatch):
    renamings = {
        "training.epochs": "training.num_epochs",
        "views.*.angle": "views.*.rotation",
        "training.size": "training.patch_size",
    }
    for former, now in renamings.items():
        monkeypatch.setitem(ALIASES, former, now)
    warn.cache_clear()


def test_a_former_spelling_still_works_and_is_told_once(aliases, write, capsys):
    path = write(
        "nnSSLBase.yaml",
        BASE.replace("num_epochs: 7", "epochs: 7").replace("rotation: 90", "angle: 90"),
    )
    config = bound()
    assert bound() == config
    assert config.sections["training"]["num_epochs"] == 7
    assert config.sections["views"]["local"]["rotation"] == 90.0
    assert capsys.readouterr().err.splitlines() == [
        f"Warning: {path}: training.epochs is now called training.num_epochs",
        f"Warning: {path}: views.local.angle is now called views.local.rotation",
    ]


def test_a_child_overrides_its_parent_in_either_spelling(aliases, write):
    write("nnSSLOld.yaml", "extends: nnSSLBase\ntraining: {epochs: 3}\n")
    write("nnSSLNew.yaml", "extends: nnSSLOld\ntraining: {num_epochs: 5}\n")
    assert bound("nnSSLOld").sections["training"]["num_epochs"] == 3
    assert bound("nnSSLNew").sections["training"]["num_epochs"] == 5
    path = write("nnSSLWrong.yaml", "extends: nnSSLOld\ntraining: {epochs: ten}\n")
    assert f"training.num_epochs = 'ten' in {path}: must" in error_of(lambda: bound("nnSSLWrong"))


def test_the_knobs_that_have_a_former_spelling():
    former = {"training": {"crop": [8, 8]}, "sampling": {"spread": 0.3, "min_occupancy": 0.1}}
    assert rename_knobs(former) == {
        "training": {"patch_size": [8, 8]},
        "sampling": {"centre_spread": 0.3, "min_tissue": 0.1},
    }


def test_both_spellings_in_one_file_are_an_error(aliases, write):
    write("nnSSLBoth.yaml", "extends: nnSSLBase\ntraining: {epochs: 3, num_epochs: 5}\n")
    assert "both are given, keep the latter" in error_of(lambda: bound("nnSSLBoth"))


@pytest.mark.parametrize("text", ["epochs=3", "training.epochs=3"])
def test_overrides_take_former_spellings(aliases, folder, text, capsys):
    config = bound(overrides=f"{text} 'size=[8, 8]' local.angle=4")
    assert config.overrides == {
        "training.num_epochs": 3,
        "training.patch_size": [8, 8],
        "views.local.rotation": 4,
    }
    assert "is now called training.num_epochs" in capsys.readouterr().err
    assert "'angle' is ambiguous" in error_of(lambda: bound(overrides="angle=4"))


def test_a_stored_configuration_gets_the_spelling_of_today_silently(aliases, folder, capsys):
    values = bound().to_dict()
    training = values["sections"]["training"]
    training["epochs"] = training.pop("num_epochs")
    values["sections"]["views"]["local"]["kind"] = "random"  # a knob that is gone
    stored = Config.from_dict(values)
    assert complete(stored, SCHEMA, ("network",)).sections == bound().sections
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- frozen, plain, comparable


def test_it_is_plain_and_survives_json_and_yaml(folder):
    config = bound(overrides="num_epochs=3")
    for back in (
        json.loads(json.dumps(config.to_dict())),
        yaml.safe_load(yaml.safe_dump(config.to_dict())),
    ):
        assert back == config.to_dict()
        assert Config.from_dict(back) == config


def test_it_cannot_be_changed(folder):
    config = bound()
    config.sections["training"]["num_epochs"] = 1
    config.to_dict()["sections"]["training"]["num_epochs"] = 1
    config.chosen("objective")[1]["temperature"] = 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"
    assert config == bound()


def test_a_knob_that_came_later_has_its_default_in_a_stored_configuration(folder):
    values = bound().to_dict()
    del values["sections"]["training"]["num_epochs"]
    filled = complete(Config.from_dict(values), SCHEMA, ("network",))
    assert filled.sections["training"]["num_epochs"] == Training().num_epochs
    values["sections"]["training"]["gone"] = 1
    with pytest.raises(ValueError, match=r"training\.gone = 1 in stored configuration"):
        complete(Config.from_dict(values), SCHEMA, ("network",))


# ---------------------------------------------------------------- extends


def test_extends_merges_deeply(write, folder):
    write("nnSSLMiddle.yaml", "extends: nnSSLBase\nviews: {global: {rotation: 5}}\n")
    write("deeper/nnSSLChild.yaml", "extends: nnSSLMiddle\nabout: {summary: child}\n")
    config = bound("nnSSLChild")
    assert config.kind == "pretrain"
    assert config.about == {"family": "test", "summary": "child"}
    assert config.sections["views"]["global"]["count"] == 3
    assert config.sections["views"]["global"]["rotation"] == 5.0
    names = ("deeper/nnSSLChild.yaml", "nnSSLMiddle.yaml", "nnSSLBase.yaml")
    assert config.sources == tuple(str(folder / name) for name in names)


def test_null_removes_an_inherited_group_and_sets_a_plain_knob(write):
    write("nnSSLBase.yaml", BASE.replace("num_epochs: 7", "patch_size: [64, 64]"))
    write(
        "nnSSLChild.yaml",
        "extends: nnSSLBase\nviews: {local: null}\ntraining: {patch_size: null}\n",
    )
    assert list(read_config("nnSSLChild").sections["views"]) == ["global"]
    config = bound("nnSSLChild")
    assert list(config.sections["views"]) == ["global"]
    assert config.sections["training"]["patch_size"] is None


def test_choosing_another_objective_drops_the_inherited_knobs(write):
    write("nnSSLChild.yaml", "extends: nnSSLBase\nobjective: {name: restoration}\n")
    assert bound("nnSSLChild").sections["objective"] == {"name": "restoration", "mask_ratio": 0.6}


def test_a_circle_is_shown(write):
    write("nnSSLA.yaml", "extends: nnSSLB\n")
    write("nnSSLB.yaml", "extends: nnSSLA\n")
    assert "nnSSLA -> nnSSLB -> nnSSLA" in error_of(lambda: read_config("nnSSLA"))


def test_a_missing_parent_is_named_with_near_ones(write):
    path = write("nnSSLChild.yaml", "extends: nnSSLBas\n")
    message = error_of(lambda: read_config("nnSSLChild"))
    assert message.startswith(f"{path}: extends names 'nnSSLBas' (did you mean 'nnSSLBase'?)")


def test_a_kind_cannot_be_extended_into_another(write):
    write("nnSSLChild.yaml", "kind: finetune\nextends: nnSSLBase\n")
    assert "of another kind" in error_of(lambda: read_config("nnSSLChild"))


# ---------------------------------------------------------------- files


def test_user_folders_come_first_in_their_order(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "nnSSLScratchTrainer.yaml").write_text(BASE)
    joined = os.pathsep.join([str(tmp_path / "first"), "", str(tmp_path / "second")])
    monkeypatch.setenv("nnssl_configs", joined)
    found = find_configs()
    assert found["nnSSLScratchTrainer"].parent == tmp_path / "first"
    assert found["nnSSLFinetuneTrainer"].is_relative_to(INSTALLED)


def test_a_missing_user_folder_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("nnssl_configs", str(tmp_path / "gone"))
    assert "which is not a folder" in error_of(find_configs)


def test_a_stem_stands_once_in_a_folder_tree(write):
    write("deeper/nnSSLBase.yaml", BASE)
    assert "two files are called 'nnSSLBase'" in error_of(lambda: read_config("nnSSLBase"))
    assert read_config("nnSSLScratchTrainer").kind == "finetune"


@pytest.mark.parametrize("name", ["MyTrainer.yaml", "nnSSL__Mine.yaml", "nnsslMine.yml"])
@pytest.mark.parametrize("text", ["kind: pretrain\n", "extends: nnSSLBase\n"])
def test_a_wrong_name_blocks_its_own_file_only(write, name, text):
    path = write(name, text)
    message = error_of(lambda: read_config(path.stem))
    assert message.startswith(str(path))
    assert "must start with 'nnSSL' and contain no '__'" in message
    assert bound().name == "nnSSLBase"
    assert read_config("nnSSLScratchTrainer").kind == "finetune"


def test_a_file_that_cannot_be_read_blocks_no_trainer(folder):
    (folder / "gone.yaml").symlink_to(folder / "nowhere.yaml")
    assert "nnSSLBase" in find_configs()


def test_other_yaml_files_are_left_alone(write):
    write("datasets/ACDC.yaml", "kind: dataset\n")
    write("compose.yaml", "services: {}\n")
    assert {"ACDC", "compose"}.isdisjoint(find_configs())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: pretrain\ntraining: {num_epochs: 3\n", "line 3: not valid YAML"),
        ("kind: pretrain\nkind: pretrain\n", "line 2: not valid YAML: key 'kind' stands twice"),
        ("kind: pretrain\na: {b: 1,\n b: 2}\n", "line 3: not valid YAML: key 'b' stands twice"),
        ("kind: pretrain\n\ttraining: 3\n", "line 2: not valid YAML"),
        ("kind: pretrain\na: \x07\n", "not valid YAML"),
        ("- 3\n", "must be a mapping of sections"),
        ("", "must be a mapping of sections"),
        ("training: {}\n", "kind = None; allowed: pretrain, finetune"),
        ("kind: train\n", "kind = 'train'; allowed: pretrain, finetune"),
        ("kind: pretrain\nabout: {papers: x}\n", "about.papers: unknown (did you mean 'paper'?)"),
        ("kind: pretrain\nabout: x\n", "about = 'x'; must be a mapping"),
    ],
)
def test_a_broken_file_is_named_with_line_and_cause(write, text, expected):
    path = write("nnSSLBroken.yaml", text)
    message = error_of(lambda: read_config("nnSSLBroken"))
    assert message.startswith(str(path))
    assert expected in message


def test_an_unknown_name_lists_near_ones(folder):
    message = error_of(lambda: read_config("nnSSLContrastTrainer"))
    assert "did you mean 'nnSSLContrastiveTrainer'" in message
    assert str(folder) in message


def test_exponents_without_a_point_are_numbers(write):
    write("nnSSLBase.yaml", BASE.replace("1e-2", "5e-4"))
    assert bound().sections["training"]["initial_lr"] == 5e-4


def test_every_installed_file_reads(monkeypatch):
    monkeypatch.delenv("nnssl_configs", raising=False)
    found = find_configs()
    assert {"nnSSLContrastiveTrainer", "nnSSLFinetuneTrainer", "nnSSLScratchTrainer"} <= set(found)
    for name, path in found.items():
        raw = read_config(name)
        assert path.parent.name == raw.kind
        assert {"family", "summary", "paper", "dimensions", "trains", "bibtex"} == set(raw.about)


# ---------------------------------------------------------------- overrides


def test_overrides_by_unique_name_by_tail_and_by_full_path(folder, monkeypatch):
    text = (
        "num_epochs=2 global.rotation=0 objective.temperature=0.2 'patch_size=[64, 64]' pool=null"
    )
    monkeypatch.setenv("nnssl_overrides", text)
    config = bind(read_config("nnSSLBase"), SCHEMA, given=("network",))
    assert config.overrides == {
        "training.num_epochs": 2,
        "views.global.rotation": 0,
        "objective.temperature": 0.2,
        "training.patch_size": [64, 64],
        "objective.pool": None,
    }
    assert config.sections["training"]["num_epochs"] == 2
    assert config.sections["views"]["global"]["rotation"] == 0.0
    assert config.sections["views"]["local"]["rotation"] == 90.0


def test_overrides_can_choose_and_set_what_was_chosen(folder):
    text = "mask_ratio=0.3 objective.name=restoration"
    config = bound(overrides=text)
    assert config.sections["objective"] == {"name": "restoration", "mask_ratio": 0.3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rotation=0",
            "'rotation' is ambiguous; write one of views.global.rotation, views.local.rotation",
        ),
        (
            "num_epoch=2",
            "'num_epoch' is no knob (did you mean training.num_epochs?); allowed: trai",
        ),
        ("network=3", "'network' is no knob"),
        ("num_epochs", "'num_epochs' must be knob=value"),
        ("num_epochs='2", "No closing quotation"),
        ("num_epochs=ten", "training.num_epochs = 'ten' in environment variable nnssl_overrides"),
        ("objective.name=rest", "objective.name = 'rest' in environment variable nnssl_overrides"),
    ],
)
def test_wrong_overrides_are_problems_of_the_run(folder, text, expected):
    assert expected in error_of(lambda: bound(overrides=text))


def test_an_override_that_is_no_yaml_is_an_error(folder):
    assert "not valid YAML" in error_of(lambda: bound(overrides="patch_size=[1,"))
