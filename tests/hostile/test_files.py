"""Damaged and hostile files of datasets and runs: every reader names the file and runs nothing."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.cli import trainers
from nnssl.common.files import write_json
from nnssl.data.case_table import GEOMETRY_FILE, read_case_table
from nnssl.data.pretraining_batches import RawPatchReader
from nnssl.nnunet.cases import read_all_cases, read_cases
from nnssl.nnunet.images import CaseError, read_properties
from nnssl.nnunet.paths import own_folder
from nnssl.nnunet.plans import read_description, read_plans
from nnssl.nnunet.splits import check_fold, read_fold
from nnssl.studies.run.slurm import JobLimits
from tests.hostile.payloads import make_runners, nest

CASE = "p1_f0"
VALUES: list[Any] = [None, [], [1], 7, "a text", {"a": None}, [None], {"cases": 3}, {"cases": [1]}]
VALUES += [{"cases": {"p1_f0": value}} for value in (None, 3, [1], "a", {}, {"patient": 1})]
VALUES += [[{"train": value, "val": []}] for value in (None, 3, "ab", [1], {"a": 1})]
VALUES += [{"configurations": value} for value in (None, 3, [1], "2d", {"2d": 3}, {"2d": [1]})]
VALUES += [{"plans_name": value, "configurations": {}} for value in (None, 3, "../a", "a\nb")]
VALUES += [{"labels": value, "channel_names": {}} for value in (None, 3, [1], "a")]
TEXTS = ["", "{", "\ufeff{}", '{"a": ', "[" * 10**5, "\x00", "nul"]


def write_damage(file: Path) -> Iterator[str]:
    """Writes one damaged content after the other."""
    whole = file.read_bytes()
    for value in VALUES:
        file.write_text(json.dumps(value))
        yield json.dumps(value)
    for text in TEXTS:
        file.write_text(text, encoding="utf-8")
        yield text[:20]
    for data in (b"\xff\xfe{\x00}\x00", b"\x80", whole[: len(whole) // 2]):
        file.write_bytes(data)
        yield repr(data[:20])
    file.write_bytes(whole)


READERS: dict[str, Callable[[Path], Any]] = {
    "splits_final.json": lambda folder: read_fold(folder, 0),
    "nnssl/cases.json": lambda folder: (read_cases(folder, [CASE]), read_all_cases(folder)),
    "nnUNetPlans.json": lambda folder: read_plans(folder / "nnUNetPlans.json", "2d"),
    "dataset.json": read_description,
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_json_names_file_and_what_is_allowed(tiny_dataset, name):
    folder = tiny_dataset.preprocessed
    READERS[name](folder)
    for _ in write_damage(folder / name):
        with pytest.raises(ValueError, match=Path(name).name):
            READERS[name](folder)


def test_a_trainer_is_not_made_of_damaged_plans(tiny_dataset):
    from nnssl.training.factory import trainer_class

    for damage in ({"configurations": None}, {"configurations": {"2d": []}}):
        with pytest.raises(ValueError, match=r"the plans, configurations.*allowed is"):
            tiny_dataset.trainer(trainer_class("nnSSLMAETrainer"), **damage)
    tiny_dataset.dataset_json["labels"] = None
    with pytest.raises(ValueError, match=r"dataset\.json, labels: found None"):
        tiny_dataset.trainer(trainer_class("nnSSLMAETrainer"))
    folder = tiny_dataset.preprocessed / "nnUNetPlans_2d"
    (tiny_dataset.preprocessed / "splits_final.json").write_text('[{"train": 1}]')
    with pytest.raises(ValueError, match=r"splits_final\.json, \[0\]\.train: found 1"):
        check_fold(folder, 0)


@pytest.fixture
def folder(tiny_dataset) -> Path:
    return tiny_dataset.preprocessed / "nnUNetPlans_2d"


def test_a_hostile_properties_file_runs_nothing(folder, tmp_path):
    file, mark = folder / f"{CASE}.pkl", tmp_path / "executed"
    for name, runner in make_runners(mark):
        for content in (runner, {"sitk_stuff": {"direction": runner}}, [runner]):
            file.write_bytes(pickle.dumps(content))
            with pytest.raises(CaseError, match=f"case {CASE}: .*{CASE}.pkl cannot be read"):
                read_case_table(folder, [CASE], [0, 1, 2], "head_feet")
            assert not mark.exists(), name
    file.write_bytes(pickle.dumps({"sitk_stuff": {"direction": nest(9)}}))
    with pytest.raises(CaseError, match="without end"):
        read_properties(file)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_nnunet_keeps_is_read_as_pickle_reads_it(tmp_path, protocol):
    kept = {
        "sitk_stuff": {"spacing": (1.0, 2.0, 3.0), "direction": tuple(np.eye(3).ravel())},
        "class_locations": {1: np.arange(12).reshape(3, 4), (1, 2): []},
        "bbox": [[np.int64(0), 3]],
        "shape": (np.float32(2.5), True, None, b"ab"),
        "affine": np.asfortranarray(np.eye(4, dtype=np.float32)),
    }
    file = tmp_path / "p.pkl"
    file.write_bytes(pickle.dumps(kept, protocol=protocol))
    found = read_properties(file)
    np.testing.assert_equal(found, kept)
    assert found["affine"].dtype == np.float32


def test_images_of_another_make_are_refused_by_their_header(folder):
    import blosc2

    file = folder / f"{CASE}.b2nd"
    good = np.ones((1, 8, 40, 40), np.float32)
    damaged = {
        "five axes": good[None],
        "three axes": good[0],
        "int16": good.astype(np.int16),
        "complex": good.astype(np.complex64),
        "bool": good > 0,
        "text": good.astype("S1"),
        "empty": good[:, :0],
    }
    box = np.array([[0, 2], [0, 8], [0, 8]])
    for array in damaged.values():
        file.unlink()
        blosc2.asarray(array, urlpath=str(file))
        for read in (
            lambda: read_case_table(folder, [CASE], [0, 1, 2], "head_feet"),
            lambda: RawPatchReader(folder).read_image(CASE, box),
        ):
            with pytest.raises(CaseError, match=f"{CASE}.b2nd: found .*allowed"):
                read()
    for data in (b"", b"not blosc2", file.read_bytes()[:100]):
        file.write_bytes(data)
        with pytest.raises(CaseError, match=f"{CASE}.b2nd"):
            read_case_table(folder, [CASE], [0, 1, 2], "head_feet")


def test_our_own_damaged_cache_is_made_anew(folder):
    before = read_case_table(folder, [CASE], [0, 1, 2], "head_feet")
    cache = own_folder(folder) / GEOMETRY_FILE
    whole = json.loads(cache.read_text())
    for entry in (None, {}, {**whole[CASE], "shape": [1]}, {**whole[CASE], "direction": None}):
        write_json(cache, {CASE: entry})
        assert read_case_table(folder, [CASE], [0, 1, 2], "head_feet") == before
    for damage in write_damage(cache):
        assert read_case_table(folder, [CASE], [0, 1, 2], "head_feet") == before, damage


@pytest.mark.parametrize(
    "limits", [{"partition": "gpu\n#SBATCH --wrap=x"}, {"partition": "a\x1b[2J"}, {"hours": -1.0}]
)
def test_no_line_break_reaches_a_script(limits):
    with pytest.raises(ValueError, match=f"{next(iter(limits))} = .* must be"):
        JobLimits(**limits)
    JobLimits(partition="gpu,long")


def test_keys_and_aliases_of_yaml(tiny_dataset, capsys):
    files = {
        "nnSSLNullTrainer": "kind: pretrain\ntraining: {~: 3}\n",
        "nnSSLListTrainer": "kind: pretrain\ntraining: {[1]: 3}\n",
        "nnSSLBombTrainer": "kind: pretrain\na0: &a0 [1]\n"
        + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)),
    }
    for name, text in files.items():
        (tiny_dataset.configs / f"{name}.yaml").write_text(text)
    assert trainers.main([]) == 1
    printed = capsys.readouterr()
    assert "nnSSLMAETrainer" in printed.out
    told = printed.err.splitlines()
    assert len(told) == 3
    for name in files:
        assert sum(f"{name}.yaml" in line and "not valid YAML" in line for line in told) == 1
