"""The semi-supervised trainer on a tiny dataset: data, teacher, exact resumption, promises."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.finetuning.semi_supervised import Lesson, Target
from nnssl.modules.unet import plain_state_dict
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.training.finetuner import nnSSLFinetuner
from nnssl.training.lessons import LessonTarget
from nnssl.training.semi_supervised import nnSSLSemiSupervised
from tests.tiny import stop_after

SHORT = """
extends: nnSSLSemiSupervisedScratchTrainer
training: {num_epochs: 2, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1}
labels: {patients: 1}
semi_supervised: {supervised_share: 0.3, %s}
"""


@pytest.fixture
def semi(tiny_dataset, trainer_yaml):
    """`semi(knobs, name=...)`: a semi-supervised trainer."""

    def build(knobs="", name="nnSSLTestTrainer", configuration="2d", kind=nnSSLSemiSupervised):
        trainer_yaml(name, knobs if "\n" in knobs else SHORT % knobs)
        made = type(name, (kind,), {"config_name": name})
        return tiny_dataset.trainer(made, configuration)

    return build


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def final_of(trainer):
    return read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")


def begin(trainer):
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def test_the_road(semi, monkeypatch):
    trainer, validated = semi(), {}
    monkeypatch.setattr(
        nnUNetTrainer,
        "perform_actual_validation",
        lambda self, _: validated.update(deepcopy(plain_state_dict(self.planned_network))),
    )
    trainer.run_training()
    trainer.perform_actual_validation()
    final, folder = final_of(trainer), Path(trainer.output_folder)
    own = final["nnssl"]
    assert final["trainer_name"] == "nnUNetTrainer"
    assert own["average_exported"] is True
    assert same(final["network_weights"], plain_state_dict(trainer.average.module))
    assert same(own["other_weights"], plain_state_dict(trainer.planned_network))
    assert not same(own["other_weights"], final["network_weights"])
    labelled = set(own["labels"]["cases"])
    assert len(labelled) == 2
    assert own["cases"]["train"] == sorted(trainer.fold_cases)
    text = Path(trainer.log_file).read_text()
    assert "6 images without labels; a step sees" in text
    assert "unsupervised_loss" in text
    assert "Pseudo Dice of the student" in text
    assert set(own["history"]) >= {"supervised_loss", "agreement", "counted", "counted_class_0"}
    assert own["history"]["unsupervised_loss"][1] is not None
    header = (folder / "history.csv").read_text().splitlines()[0].split(",")
    assert {"epoch", "train_loss", "pseudo_dice", "unsupervised_loss"} <= set(header)
    assert (folder / "pictures" / "epoch_0002_pseudo_labels.png").stat().st_size > 1000
    assert same(validated, final["network_weights"])
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,))
    assert same(dict(predictor.network.state_dict()), final["network_weights"])


@pytest.mark.parametrize("knobs", ["feature_dropout: 0.3", "consistency: cross"])
def test_stopped_anywhere_the_run_ends_with_the_same_weights(semi, knobs):
    whole = semi(knobs, name="nnSSLWholeTrainer")
    whole.run_training()
    for stop_at in (1, 3, 5):
        part = semi(knobs, name=f"nnSSLPart{stop_at}Trainer")
        stop_after(part, stop_at)
        with pytest.raises(SystemExit):
            part.run_training()
        resumed = semi(knobs, name=f"nnSSLPart{stop_at}Trainer")
        resumed.load_checkpoint(str(Path(part.output_folder) / "checkpoint_latest.pth"))
        resumed.run_training()
        ends = [final_of(trainer) for trainer in (whole, resumed)]
        assert same(ends[0]["network_weights"], ends[1]["network_weights"])
        assert same(ends[0]["nnssl"]["other_weights"], ends[1]["nnssl"]["other_weights"])
        terms = [end["nnssl"]["history"] for end in ends]
        for key in set(terms[0]) - {"epoch_seconds", "seconds_waited"}:
            assert terms[0][key] == terms[1][key]
        partners = [end["nnssl"].get("partner") for end in ends]
        assert (partners[0] is None) == ("cross" not in knobs)
        if partners[0] is not None:
            assert same(partners[0]["network_weights"], partners[1]["network_weights"])


def test_labels_of_unlabelled_cases_are_never_read(semi, tiny_dataset):
    first = semi(name="nnSSLFirstTrainer")
    first.run_training()
    folder = Path(first.preprocessed_dataset_folder)
    for case in first.unlabelled_cases:
        labels = folder / f"{case}_seg.b2nd"
        shape = blosc2.open(str(labels)).shape
        labels.unlink()
        blosc2.asarray(np.full(shape, 1, np.int8), urlpath=str(labels))
        properties = pickle.loads((folder / f"{case}.pkl").read_bytes())
        properties["class_locations"] = {1: np.zeros((1, 4), int)}
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties))
    second = semi(name="nnSSLSecondTrainer")
    second.run_training()
    assert same(final_of(first)["network_weights"], final_of(second)["network_weights"])


@pytest.mark.parametrize(
    "knobs",
    [
        "mix: none",
        "mix: cutmix, largest_component: true",
        "mix: mixup",
        "mix: copy_paste, consistency: mean_teacher",
        "mix: none, consistency: mean_teacher, feature_dropout: 0.5",
        "consistency: cross, feature_dropout: 0.5",
    ],
)
def test_every_form_learns_from_both(semi, knobs):
    trainer = begin(semi(f"{knobs}, ramp_share: 0"))
    before = plain_state_dict(trainer.planned_network)
    before = {key: value.clone() for key, value in before.items()}
    for _ in range(3):
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        assert np.isfinite(loss)
    assert trainer.loss.terms["unsupervised_loss"] >= -1
    assert not same(before, plain_state_dict(trainer.planned_network))
    trainer.close()


def test_without_consistency_nothing_is_asked_of_images_without_labels(semi):
    trainer = begin(semi("consistency: none, ramp_share: 0"))
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    assert trainer.lesson.images.ndim == 4
    assert len(trainer.lesson.targets) == 1
    assert trainer.lesson.comparison.weight == 0
    trainer.close()


def test_a_copy_of_the_network_copies_no_trainer(semi):
    trainer = begin(semi())
    copied = trainer.average.module
    hooks = [*copied.encoder._forward_hooks.values(), *copied._load_state_dict_post_hooks.values()]
    assert len(hooks) == 2
    assert not any(hasattr(hook, "__self__") for hook in hooks)
    trainer.close()


def test_two_networks_label_for_each_other(semi):
    """Each learns in the supervised part too; the lesson of each is what the other says."""
    trainer = begin(semi("consistency: cross, ramp_share: 0, confidence: 0, mix: none"))
    partner = trainer.partner.planned_network
    first, second = plain_state_dict(trainer.planned_network), plain_state_dict(partner)
    assert not same(first, second)
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert not same(second, plain_state_dict(partner))
    batch = next(trainer.dataloader_train)
    says = {
        name: trainer.ask(network, batch["unlabelled"])
        for name, network in (("first", trainer.planned_network), ("second", partner))
    }
    assert not torch.equal(says["first"].labels, says["second"].labels)
    lessons = []
    compose = trainer.semi.compose
    object.__setattr__(
        trainer.semi, "compose", lambda *a: lessons.append(compose(*a)) or lessons[-1]
    )
    second = plain_state_dict(partner)
    trainer.train_step(batch)
    assert not same(second, plain_state_dict(partner))
    asked = [lesson.targets[1].values for lesson in lessons]
    assert torch.equal(asked[0], says["first"].labels)  # the partner's lesson
    assert torch.equal(asked[1], says["second"].labels)
    trainer.close()


def test_the_partner_begins_with_the_transferred_weights(semi, tiny_dataset):
    trainer = semi("consistency: cross")
    trainer.initialize()
    weights = plain_state_dict(trainer.planned_network)
    kept = [key for key in weights if key.startswith("encoder.stages.0")]
    trainer.weights_record["loaded"] = kept
    trainer._begin_average()
    partner = plain_state_dict(trainer.partner.planned_network)
    assert {key for key in kept if not torch.equal(partner[key], weights[key])} == set()
    others = [key for key in weights if "conv.weight" in key and key not in kept]
    alike = {key for key in others if torch.equal(partner[key], weights[key])}
    assert {key.replace("decoder.encoder.", "encoder.") for key in alike} <= set(kept)


def test_3d_sees_one_of_each(semi):
    trainer = begin(semi(configuration="3d_fullres"))
    for _ in range(3):
        assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert len(trainer.lesson.images) == 2
    trainer.close()


def test_regions(semi, tiny_dataset):
    description = deepcopy(tiny_dataset.dataset_json)
    names = [name for name in description["labels"] if name != "background"]
    whole = list(range(1, len(names) + 1))
    description["labels"] = {"background": 0, "whole": whole, "part": [1]}
    description["regions_class_order"] = [2, 1]
    tiny_dataset.dataset_json.clear()
    tiny_dataset.dataset_json.update(description)
    trainer = begin(semi("ramp_share: 0"))
    for _ in range(3):
        assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert trainer.loss.form.regions == 2
    assert trainer.lesson.targets[0].values.shape[1] == 3
    trainer.close()


def test_a_lesson_of_plain_labels_has_nnunets_loss(semi):
    trainer = begin(semi())
    batch = next(trainer.dataloader_train)
    output = trainer.network(batch["data"])
    stock = trainer.loss(output, batch["target"])
    images, values = trainer.move_labelled(batch)
    lesson = Lesson(images, (Target(1.0, slice(0, len(images)), values),))
    assert torch.equal(trainer.loss(output, LessonTarget(lesson)), stock)
    trainer.close()


def test_all_cases_labelled_is_refused(semi):
    text = SHORT.replace("labels: {patients: 1}\n", "") % ""
    trainer = semi(text)
    with pytest.raises(ValueError, match="needs images without labels, and there are none"):
        trainer.on_train_start()


@pytest.mark.parametrize("mix", ["copy_paste", "mixup"])
def test_fine_tuning_mixes_and_averages(semi, mix):
    text = f"""
extends: nnSSLScratchTrainer
training:
  {{num_epochs: 2, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1, mix: {mix},
    weights_average: ema, average_decay: 0.5}}
labels: {{patients: 1}}
"""
    whole = semi(text, "nnSSLWholeTrainer", kind=nnSSLFinetuner)
    whole.run_training()
    final = final_of(whole)
    assert not same(final["network_weights"], final["nnssl"]["other_weights"])
    part = semi(text, "nnSSLPartTrainer", kind=nnSSLFinetuner)
    stop_after(part, 3)
    with pytest.raises(SystemExit):
        part.run_training()
    resumed = semi(text, "nnSSLPartTrainer", kind=nnSSLFinetuner)
    resumed.load_checkpoint(str(Path(part.output_folder) / "checkpoint_latest.pth"))
    resumed.run_training()
    assert same(final["network_weights"], final_of(resumed)["network_weights"])
    assert same(final["nnssl"]["other_weights"], final_of(resumed)["nnssl"]["other_weights"])


def test_the_average_follows_its_formula(semi):
    text = """
extends: nnSSLScratchTrainer
training:
  {num_epochs: 1, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1,
   weights_average: ema, average_decay: 0.6}
labels: {patients: 1}
"""
    trainer = begin(semi(text, kind=nnSSLFinetuner))
    key = "encoder.stages.0.0.convs.0.conv.weight"
    expected = trainer.planned_network.state_dict()[key].clone()
    for step in range(3):
        trainer.train_step(next(trainer.dataloader_train))
        decay = min(1 - 1 / (step + 1), 0.6)
        expected = decay * expected + (1 - decay) * trainer.planned_network.state_dict()[key]
        assert torch.allclose(trainer.average.module.state_dict()[key], expected, atol=1e-7)
    trainer.close()
