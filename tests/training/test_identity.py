"""What a run is: nothing is overwritten, and nothing is continued as something else."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nnssl.common.locks import FolderInUseError
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.training import pretraining_loop
from nnssl.training.checkpoints import write_resolved_config
from nnssl.training.factory import trainer_class
from nnssl.training.identity import (
    RANDOM_WEIGHTS,
    find_differences,
    read_identity,
    refuse_changes,
    refuse_occupied,
    set_aside,
)

CONFIG = {"training": {"num_epochs": 5, "overwrite": False}, "views": {"a": {"scale": (0.8, 1.2)}}}
OLD = {
    "name": "nnSSLOldTrainer",
    "kind": "pretrain",
    "about": {},
    "sections": CONFIG,
    "sources": [],
}
COMMAND = "nnUNetv2_train 27 2d 0"
PRETRAINING = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 3, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0, save_every: 1}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8}
probe: {probe_at_end: false}
"""
FINETUNING = """
kind: finetune
training: {num_epochs: 3, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1,
           save_every: 1}
labels: {patients: 1}
"""
HOLD = """
import sys, time
from pathlib import Path
from nnssl.common.locks import hold_with_process
lock = hold_with_process(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


# ---------------------------------------------------------------------- the comparison


def changed(**training: Any) -> dict[str, Any]:
    return {**CONFIG, "training": {**CONFIG["training"], **training}}


def refuse(today: Any, *may_change: str) -> list[str]:
    return refuse_changes({"settings": CONFIG}, {"settings": today}, may_change)


def test_a_resume_allows_only_what_may_change() -> None:
    assert refuse(CONFIG) == []
    lines = refuse(changed(num_epochs=9), "training.num_epochs")
    assert lines == ["training.num_epochs changed from 5 to 9"]
    assert len(refuse(changed(num_epochs=9), "training")) == 1
    with pytest.raises(ValueError, match=r"training\.num_epochs: stored 5, today 9"):
        refuse(changed(num_epochs=9), "training.num")


def test_new_and_vanished_settings_are_differences() -> None:
    with pytest.raises(ValueError, match=r"labels\.patients: stored '\(not set\)', today 2"):
        refuse({**CONFIG, "labels": {"patients": 2}})
    with pytest.raises(ValueError, match=r"views\.a\.scale: stored .*, today '\(not set\)'"):
        refuse({"training": CONFIG["training"]})


def test_weights_are_compared_by_content_and_by_name_where_no_hash_is_stored() -> None:
    def differ(old: dict[str, str], new: dict[str, str]) -> list[str]:
        pair = [
            {"weights": w, "settings": {"weights": {"source": w.get("file")}}} for w in (old, new)
        ]
        return [each.name for each in find_differences(*pair)]

    a, copy = {"file": "/a", "sha256": "1" * 64}, {"file": "/copy", "sha256": "1" * 64}
    other = {"file": "/a", "sha256": "2" * 64}
    assert differ(a, copy) == []
    assert differ(a, other) == ["weights"]
    assert differ(a, dict(RANDOM_WEIGHTS)) == ["weights"]
    assert differ({"file": "/a"}, a) == []
    assert "weights.file" in differ({"file": "/b"}, a)


def test_versions_are_told_and_never_refused() -> None:
    old, new = ({"versions": {"torch": number}} for number in ("2.5", "2.6"))
    assert refuse_changes(old, new) == ["versions.torch changed from '2.5' to '2.6'"]


def test_long_lists_tell_what_came_and_went() -> None:
    old, new = ({"cases": {"train": list(names)}} for names in ("abcde", "abcdxyzw"))
    (told,) = map(str, find_differences(old, new))
    assert told == "cases.train: today 4 more (x, y, z, ...), 1 fewer (e)"


def test_of_an_older_version_is_compared_what_it_stored() -> None:
    """Real old checkpoints: tests/legacy."""
    own = {"kind": "finetune", "config": {"sections": CONFIG}, "labels": {"cases": ["p1"]}}
    found = read_identity({"nnssl": {**own, "weights": {"source": "/a", "how": "named"}}})
    assert found["cases"] == {"train": ["p1"]}
    assert found["weights"] == {"file": "/a"}
    assert "plans" not in found
    assert find_differences(found, {"cases": {"train": ["p1"], "validation": ["p0"]}}) == []
    assert (
        read_identity({"nnssl": {**own, "weights": {"how": "random"}}})["weights"] == RANDOM_WEIGHTS
    )


def test_resolved_config_is_readable_yaml(tmp_path: Path) -> None:
    path = write_resolved_config(tmp_path / "new", CONFIG)
    assert path.name == "resolved_config.yaml"
    assert yaml.safe_load(path.read_text())["views"] == {"a": {"scale": [0.8, 1.2]}}


# ---------------------------------------------------------------------- a fresh run in a folder


def occupy(folder: Path, name: str = "checkpoint_final.pth", config: Any = OLD) -> None:
    nnssl = {"nnssl": {"config": config}} if config is not None else {}
    weights = {"network_weights": {"a": torch.zeros(1)}, "current_epoch": 2}
    save_atomically({**weights, **nnssl}, folder / name)


def refusal(folder: Path, settings: Any = CONFIG) -> str:
    with pytest.raises(RuntimeError) as caught:
        refuse_occupied(folder, {"settings": settings}, ("training.num_epochs",), COMMAND)
    return str(caught.value)


def test_another_run_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    occupy(tmp_path, config=OLD)
    text = refusal(tmp_path, {**CONFIG, "views": {"a": {"scale": [0.5, 1.2]}}})
    difference = "views.a.scale: stored [0.8, 1.2], today [0.5, 1.2]"
    for expected in (
        difference,
        "a finished run",
        "training.overwrite=true",
        "nnUNet_results",
        "-tr",
    ):
        assert expected in text
    assert "--c" not in text
    assert f"Continue it with: {COMMAND} --c" in refusal(tmp_path, changed(num_epochs=6))


def test_the_same_run_is_refused_too_and_told_how_to_go_on(tmp_path: Path) -> None:
    refuse_occupied(tmp_path, {"settings": CONFIG}, (), COMMAND)
    occupy(tmp_path)
    assert (
        f"Nothing is left to do; its validation alone is repeated by: {COMMAND} --val"
        in refusal(tmp_path, changed(overwrite=True))
    )
    for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
        (file,) = tmp_path.glob("*.pth")
        file.rename(tmp_path / name)
        text = refusal(tmp_path)
        assert "stopped after 2 of 5 epochs, and it is just this one" in text
        assert f"Continue it with: {COMMAND} --c" in text


def test_foreign_and_broken_runs_are_refused(tmp_path: Path) -> None:
    occupy(tmp_path, config=None)
    assert "not written by nnSSL" in refusal(tmp_path)
    (tmp_path / "checkpoint_final.pth").write_bytes(b"broken")
    assert "cannot be read" in refusal(tmp_path)


def test_a_run_is_set_aside_as_a_whole(tmp_path: Path) -> None:
    for number in (1, 2):
        occupy(tmp_path)
        (tmp_path / "validation").mkdir()
        (tmp_path / "training_log_2026.txt").touch()
        (tmp_path / "cell.lock").touch()
        assert set_aside(tmp_path) == tmp_path / f"former_{number}"
        kept = {path.name for path in (tmp_path / f"former_{number}").iterdir()}
        assert kept == {"checkpoint_final.pth", "validation"}
    assert set_aside(tmp_path) is None
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"former_1", "former_2", "training_log_2026.txt", "cell.lock"}


# ---------------------------------------------------------------------- both trainers


@pytest.fixture(params=["pretrain", "scratch"])
def make(
    request: pytest.FixtureRequest,
    tiny_dataset: Any,
    trainer_yaml: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Any]:
    """`make(fold=0, **plans)`: a trainer of three epochs, of pre-training or of fine-tuning."""
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)
    texts = {"pretrain": PRETRAINING, "finetune": FINETUNING}
    trainer_yaml("nnSSLMine", texts.get(request.param, FINETUNING + "weights: {source: none}\n"))
    trainer_class.cache_clear()
    if request.param == "finetune":
        pretrain(tiny_dataset, trainer_yaml, monkeypatch, "first")

    def build(fold: int | str = 0, **plans: Any) -> Any:
        return tiny_dataset.trainer(trainer_class("nnSSLMine"), fold=fold, **plans)

    build.kind = request.param
    return build


def pretrain(dataset: Any, trainer_yaml: Any, monkeypatch: Any, name: str, seed: int = 0) -> Path:
    """Weights of a short pre-training, in a file that is named to fine-tuning."""
    trainer_yaml(
        f"nnSSLPre{name}", PRETRAINING.replace("num_epochs: 3", f"num_epochs: 1, seed: {seed}")
    )
    trainer = dataset.trainer(trainer_class(f"nnSSLPre{name}"))
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    monkeypatch.setenv("nnssl_pretrained_weights", str(file))
    return file


def stop_after_an_epoch(trainer: Any) -> Path:
    """An unfinished run; its `checkpoint_latest`."""
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = [trainer.train_step(next(trainer.dataloader_train))]
    trainer.on_train_epoch_end(outputs)
    trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])
    trainer.on_epoch_end()
    trainer.close()
    return Path(trainer.latest_checkpoint)


def load(trainer: Any, file: Path) -> Any:
    trainer.load_checkpoint(str(file))
    return trainer


def start(trainer: Any) -> Any:
    trainer.on_train_start()
    trainer.close()
    return trainer


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


@pytest.mark.parametrize("make", ["pretrain", "finetune", "scratch"], indirect=True)
def test_the_record_says_what_the_run_depends_on(make: Any) -> None:
    trainer = make()
    latest = stop_after_an_epoch(trainer)
    stored = torch.load(latest, weights_only=True)["nnssl"]["identity"]
    parts = {"settings", "plans", "dataset.json", "cases", "weights", "versions"}
    assert set(stored) == parts | ({"dense targets"} if make.kind == "pretrain" else set())
    assert stored["plans"]["patch_size"] == [32, 32]
    assert stored["cases"]["validation"] == ["p0_f0", "p0_f1"]
    assert len(stored["cases"]["train"]) == (8 if make.kind == "pretrain" else 2)
    assert (stored["weights"] == RANDOM_WEIGHTS) is (make.kind != "finetune")
    assert find_differences(stored, load(make(), latest).identify()) == []


def test_without_c_an_unfinished_run_is_left_as_it_is(make: Any) -> None:
    latest = stop_after_an_epoch(make())
    before = latest.read_bytes()
    with pytest.raises(RuntimeError, match=r"Continue it with: nnUNetv2_train .*nnSSLMine.* --c"):
        make().on_train_start()
    assert latest.read_bytes() == before


def test_overwrite_sets_a_run_aside_when_the_next_one_begins(
    make: Any, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = stop_after_an_epoch(make())
    monkeypatch.setenv("nnssl_overrides", "overwrite=true")
    trainer = make()
    monkeypatch.setattr(trainer, "clear_folder", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.on_train_start()
    assert latest.is_file()
    told = log_of(start(make()))
    assert not latest.exists()
    assert f"kept in {latest.parent / 'former_1'}" in told
    assert (latest.parent / "former_1" / latest.name).is_file()
    assert (latest.parent / "resolved_config.yaml").is_file()


def test_it_goes_on_with_stored_overrides_where_the_shell_has_none(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnssl_overrides", "num_epochs=2 training.seed=3")
    latest = stop_after_an_epoch(make())
    monkeypatch.delenv("nnssl_overrides")
    again = start(load(make(), latest))
    assert again.num_epochs == 2
    assert "override training.num_epochs = 2 (stored with the run)" in log_of(again)
    monkeypatch.setenv("nnssl_overrides", "num_epochs=4")  # the seed need not be repeated
    longer = start(load(make(), latest))
    assert (longer.num_epochs, longer.settings.seed) == (4, 3)
    assert "override training.num_epochs = 4 (of today)" in log_of(longer)


def test_other_plans_are_neither_continued_nor_validated(make: Any, tiny_dataset: Any) -> None:
    latest = stop_after_an_epoch(make())
    for what in ("patch_size", "spacing", "features_per_stage", "labels"):
        plans = deepcopy(tiny_dataset.plans)
        planned = plans["configurations"]["2d"]
        if what == "features_per_stage":
            planned["architecture"]["arch_kwargs"][what] = [4, 6, 10]
        elif what == "labels":
            tiny_dataset.dataset_json["labels"] = {"background": 0, "ball": 1}
        else:
            planned[what] = [16, 16]
        with pytest.raises(ValueError, match=rf"neither continued(.|\n)*{what}.*: stored"):
            load(make(**plans), latest)


def test_plans_that_grew_by_another_configuration_are_the_same(
    make: Any, tiny_dataset: Any
) -> None:
    latest = stop_after_an_epoch(make())
    more = deepcopy(tiny_dataset.plans["configurations"])
    start(load(make(configurations={**more, "new": more["3d_fullres"]}), latest))


def test_another_fold_file_is_neither_continued_nor_validated(make: Any, tiny_dataset: Any) -> None:
    latest = stop_after_an_epoch(make())
    file = tiny_dataset.preprocessed / "splits_final.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    with pytest.raises(ValueError, match=r"cases\.(.|\n)*p0_f0"):
        load(make(), latest)


@pytest.mark.parametrize("make", ["finetune"], indirect=True)
def test_other_weights_are_neither_overwritten_nor_continued(
    make: Any, tiny_dataset: Any, trainer_yaml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latest = stop_after_an_epoch(make())
    other = pretrain(tiny_dataset, trainer_yaml, monkeypatch, "second", seed=1)
    with pytest.raises(RuntimeError, match=r"another one(.|\n)*weights: stored .*first.*second"):
        make().on_train_start()
    with pytest.raises(ValueError, match=r"weights: stored .*first.*second"):
        start(load(make(), latest))
    monkeypatch.delenv("nnssl_pretrained_weights")
    other.rename(other.with_name("elsewhere.pth"))
    start(load(make(), latest))  # nothing is named, nothing is searched


def test_other_plans_in_another_fold_are_refused_before_they_replace_the_common_file(
    make: Any, tiny_dataset: Any
) -> None:
    stop_after_an_epoch(make())
    plans = deepcopy(tiny_dataset.plans["configurations"])
    plans["2d"]["patch_size"] = [16, 16]
    trainer = make(fold=1, configurations=plans)
    with pytest.raises(RuntimeError, match=r"share one plans\.json(.|\n)*plans\.patch_size"):
        trainer.on_train_start()


def test_a_folder_in_use_is_neither_trained_nor_validated_in(make: Any) -> None:
    latest = stop_after_an_epoch(make())
    command = [sys.executable, "-c", HOLD, str(latest.parent)]
    gc.collect()  # the trainer that held it is gone
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        for road in (lambda trainer: load(trainer, latest), start):
            with pytest.raises(FolderInUseError, match=f"in use: process {other.pid}"):
                road(make())
    finally:
        other.kill()
        other.wait()
    load(make(), latest)
