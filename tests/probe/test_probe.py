"""The probe in a pre-training run: what it leaves, that it changes nothing, that it cannot kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from nnssl.nnunet.cases import CaseRecord
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.images import image_file
from nnssl.probe import during_training, random_encoder
from nnssl.probe.probe import Probe
from nnssl.probe.settings import ProbeSettings
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class

TRAINER = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 2, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: %s, warmup_epochs: 0, picture_every: 9}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8}
probe: {%s}
"""
EVERY = "probe_every: 1, probe_draws: 2"
OFF = "probe_at_end: false"


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first test looks at what is drawn."""
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)
    if not request.node.name.startswith("test_a_run_leaves"):
        monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
        monkeypatch.setattr(during_training.pictures, "draw", lambda *_: None)


@pytest.fixture
def run(tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]) -> Callable[..., Any]:
    """`run(probe, configuration, fold)` trains and returns the trainer."""
    count = iter(range(100))

    def train(probe: str, configuration: str = "2d", **changes: Any) -> Any:
        patch_size = "[16, 16]" if configuration == "2d" else "[4, 16, 16]"
        name = trainer_yaml(f"nnSSLProbed{next(count)}", TRAINER % (patch_size, probe))
        trainer_class.cache_clear()
        tiny_dataset.dataset_json.update(changes)
        trainer = tiny_dataset.trainer(trainer_class(name), configuration)
        trainer.run_training()
        return trainer

    return train


def result(trainer: Any) -> dict[str, Any]:
    return json.loads((Path(trainer.output_folder) / "probe.json").read_text())


def final(trainer: Any) -> dict[str, Any]:
    return read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")


def same(a: Any, b: Any) -> bool:
    """Bit-equality of nested plain values."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def segmentation(dataset: Any, case: str, configuration: str = "2d") -> Path:
    return dataset.preprocessed / f"nnUNetPlans_{configuration}" / f"{case}_seg.b2nd"


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_run_leaves_the_record_the_curve_and_the_pictures(
    run: Callable[..., Any], configuration: str
) -> None:
    trainer = run(EVERY, configuration)
    found = result(trainer)
    assert "read by this probe, never by pre-training" in found["labels"]
    assert "nothing reads this file to choose" in found["choice"]
    assert (found["epochs"], found["steps"], found["fold"]) == (2, 4, 0)
    assert found["cases"]["scored"] == ["p0_f0", "p0_f1"]
    assert [len(draw) for draw in found["cases"]["fitted"]] == [4, 4]  # 2 patients, 2 frames each
    assert not {"p0_f0", "p0_f1"} & {case for draw in found["cases"]["fitted"] for case in draw}
    for encoder in found["encoders"].values():
        assert encoder["dice_per_structure"].keys() == {"shell", "core"}
        assert 0.5 < encoder["dice"] <= 1  # the classes differ in brightness
        assert encoder["position_error"] >= 0
        assert encoder["seconds"] > 0
    history = trainer.history.values
    assert history["probe_dice"][-1] == pytest.approx(found["encoders"]["pretrained"]["dice"])
    assert history["probe_dice_random"][0] == history["probe_dice_random"][1]
    assert history["probe_dice"][0] != history["probe_dice_random"][0]
    assert len(history["probe_seconds"]) == len(history["train_loss"]) == 2
    assert None not in history["train_loss"]
    pictures = Path(trainer.output_folder) / "pictures"
    for name in ("probe_embedding.png", "probe_neighbours.png"):
        assert (pictures / name).stat().st_size > 1000
    assert final(trainer)["nnssl"]["history"]["probe_dice"] == history["probe_dice"]


def test_weights_optimiser_and_random_numbers_are_the_same_with_and_without(
    run: Callable[..., Any],
) -> None:
    """Every state after training is bit-equal; so are the modes of the network."""
    after = []
    for probe in (OFF, EVERY):
        torch.manual_seed(5)
        np.random.seed(5)
        trainer = run(probe)
        content = final(trainer)
        kept = {
            "weights": content["network_weights"],
            "optimizer": content["optimizer_state"],
            "objective": content["nnssl"]["objective_state"],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),
            "training": [module.training for module in trainer.network.modules()],
            "loss": trainer.history.values["train_loss"],
        }
        after.append(kept)
        assert ("probe_dice" in trainer.history.values) == (probe == EVERY)
    for key in after[0]:
        assert same(after[0][key], after[1][key]), key


def test_labels_reach_the_record_and_no_weight(tiny_dataset: Any, run: Callable[..., Any]) -> None:
    """Other validation labels: another Dice, the same weights and label-free metrics."""
    first = run("probe_draws: 1")
    for case in ("p0_f0", "p0_f1"):
        file = segmentation(tiny_dataset, case)
        labels = np.asarray(blosc2.open(str(file))[:])
        file.unlink()
        blosc2.asarray(
            np.ascontiguousarray(labels[..., ::-1] == 0).astype(labels.dtype), urlpath=str(file)
        )
    second = run("probe_draws: 1")
    a, b = (result(trainer)["encoders"]["pretrained"] for trainer in (first, second))
    assert b["dice"] < a["dice"] - 0.2
    assert a["effective_rank"] == b["effective_rank"]
    assert a["position_error"] == b["position_error"]
    assert same(final(first)["network_weights"], final(second)["network_weights"])


def test_the_random_encoder_is_probed_once_while_nothing_changes(
    tiny_dataset: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same figures in a second run; other images, labels, draws, code: anew."""
    probe, probed = Probe.probe_random, []
    monkeypatch.setattr(Probe, "probe_random", lambda *a: probed.append(a) or probe(*a))
    first, second = (run("probe_draws: 1") for _ in range(2))
    assert len(probed) == 1
    made, recalled = (result(trainer)["encoders"]["random"] for trainer in (first, second))
    assert recalled == {**made, "recalled": True}
    name = "probe_dice_random"
    assert first.history.values[name] == second.history.values[name]
    (kept,) = tiny_dataset.preprocessed.rglob("random_encoders/*.json")
    before = kept.read_text()
    for change in (
        lambda: segmentation(tiny_dataset, "p0_f0").touch(),
        lambda: image_file(segmentation(tiny_dataset, "p0_f0").parent, "p0_f0").touch(),
        lambda: kept.write_text(before[:-9]),
        lambda: monkeypatch.setattr(random_encoder, "CODE", ("probe",)),
    ):
        change()
        probed.clear()
        found = result(run("probe_draws: 1"))["encoders"]["random"]
        assert len(probed) == 1
        assert {**found, "seconds": 0} == {**made, "seconds": 0}
    run("probe_draws: 2")
    assert len(probed) == 2


@pytest.mark.parametrize("why", ["names no structure", "have no segmentation file"])
def test_without_labels_only_the_label_free_metrics(
    tiny_dataset: Any, run: Callable[..., Any], why: str
) -> None:
    labels = {"background": 0, "shell": 1, "core": 2}
    if why == "names no structure":
        labels = {"background": 0, "foreground": 1}
    else:
        segmentation(tiny_dataset, "p0_f0").unlink()
    found = result(run("probe_draws: 1", labels=labels))
    assert why in found["why_no_labels"]
    assert "No label was read" in found["labels"]
    assert found["cases"]["fitted"] == []
    for encoder in found["encoders"].values():
        assert "dice" not in encoder
        assert encoder["effective_rank"] > 1


def test_regions_and_an_ignore_label(run: Callable[..., Any]) -> None:
    """The raw integers are probed, and the ignored one is not among them."""
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    found = result(run("probe_draws: 1", labels=labels, regions_class_order=[1, 2]))
    structures = found["encoders"]["random"]["dice_per_structure"]
    assert structures.keys() == {"label 1", "core"}
    assert min(structures.values()) > 0.3


def test_a_failure_is_logged_and_training_goes_on(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no memory left for the probe")

    monkeypatch.setattr(during_training.pictures, "draw", broken)
    trainer = run("probe_draws: 1")
    log = Path(trainer.log_file).read_text()
    assert "the probe failed" in log
    assert "no memory left for the probe" in log
    assert final(trainer)["nnssl"]["finished"]
    assert "probe_dice" not in trainer.history.values


def test_the_default_number_of_patients_becomes_the_one_that_is_there() -> None:
    one = {case: CaseRecord("p", "D") for case in ("a", "b")}
    fold: Any = SimpleNamespace(train=list(one), read_records=lambda cases: one)
    assert Probe(fold, ProbeSettings(), torch.device("cpu"))._patients == 1
    assert Probe(fold, ProbeSettings(probe_patients=3), torch.device("cpu"))._patients == 3


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("probe_patients: 9", r"probe.probe_patients: found 9 .*allowed: 1 to 4"),
        ("probe_draws: 0", r"probe\.probe_draws = 0 in .*yaml: must be an integer of at least 1"),
        ("probe_every: -1", r"probe\.probe_every = -1 in .*yaml: must be an integer of at least 0"),
        ("reference: nowhere.pth", "nowhere.pth does not exist"),
        ("probe_patient: 2", "did you mean 'probe_patients'"),
    ],
)
def test_wrong_settings_are_refused_at_the_start(
    run: Callable[..., Any], probe: str, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(probe)


def test_a_reference_of_other_plans_is_refused(
    run: Callable[..., Any], tmp_path: Path, make_unet: Callable[..., Any]
) -> None:
    file = tmp_path / "other.pth"
    save_atomically({"network_weights": make_unet(2, features=(3, 6, 8)).state_dict()}, file)
    with pytest.raises(ValueError, match=r"probe\.reference: .*other\.pth: only .* of the encoder"):
        run(f"reference: {file}")


def test_the_section_may_change_on_a_resume(
    tiny_dataset: Any, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a checkpoint from before there was a probe."""
    trainer = run(OFF)
    content = final(trainer)
    del content["nnssl"]["config"]["sections"]["probe"]
    monkeypatch.setenv("nnssl_overrides", "num_epochs=3 probe_at_end=true probe_draws=1")
    resumed = tiny_dataset.trainer(type(trainer))
    resumed.load_checkpoint(content)
    resumed.run_training()
    assert resumed.probe_settings == ProbeSettings(probe_draws=1)
    assert resumed.history.values["probe_dice"][:2] == [None, None]
    assert result(resumed)["epochs"] == 3


def test_when_it_is_due() -> None:
    settings = ProbeSettings(probe_every=3, probe_at_end=False)
    assert [e for e in range(1, 10) if settings.is_due(e, 9)] == [3, 6]
    assert [e for e in range(1, 10) if ProbeSettings().is_due(e, 9)] == [9]
