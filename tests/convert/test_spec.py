"""The closed vocabulary of dataset specs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nnssl.convert.spec import find_specs, read_spec


def written(tmp_path: Path, **changes: object) -> Path:
    """The ACDC spec with some entries changed; ``None`` removes one."""
    raw = yaml.safe_load(find_specs()["ACDC"].read_text()) | changes
    path = tmp_path / "Mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
    return path


def test_every_installed_spec_is_valid():
    specs = find_specs()
    assert len(specs) >= 1
    for name, path in specs.items():
        assert read_spec(path).name == name


def test_a_users_folder_comes_first(tmp_path: Path):
    (tmp_path / "datasets").mkdir()
    for name in ("ACDC", "Mine"):
        (tmp_path / "datasets" / f"{name}.yaml").write_text("")
    found = find_specs([tmp_path])
    assert found["ACDC"].parent == found["Mine"].parent == tmp_path / "datasets"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"chanels": {}},
            "chanels = {}: unknown knob .did you mean 'channels'.*allowed: name, .*",
        ),
        ({"licence": None}, "licence: is missing; must be a text"),
        ({"labels": {"background": 0, "RV": 2}}, "consecutive integers"),
        ({"labels": {"RV": 0, "LV": 1}}, "need background 0"),
        ({"labels": [0, 1]}, "labels = \\[0, 1\\]: must be a mapping .not empty."),
        ({"label": "(?P<patient>x)(?P<more>y)"}, "same named groups"),
        ({"label": "(?P<patient"}, "label is .* no regular expression"),
        ({"test": "("}, "test is .* no regular expression"),
        ({"case": "{subject}"}, "case is '{subject}'; it must use the named groups"),
        ({"patient": "everyone"}, "patient is 'everyone'; it must use"),
        ({"frames": "all"}, "frames = 'all': must be a text .one of acdc_info_cfg"),
        ({"folds": 1}, "folds = 1: must be an integer of at least 2"),
        ({"name": "A C"}, "name = 'A C': must be a text .letters"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=f"Mine.yaml: .*{message}"):
        read_spec(written(tmp_path, **changes))


def test_broken_yaml_is_named(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"x\.yaml"):
        read_spec(tmp_path / "x.yaml")
