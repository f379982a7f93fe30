"""The fine-tuning trainer on a tiny dataset: weights, labels, batches, resumption, promises."""

from __future__ import annotations

import csv
import inspect
import json
import signal
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnssl.data.supervised_batches import SeededBatches
from nnssl.modules.unet import Trained, inputs_without_skips, plain_state_dict, trained_keys
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.images import CaseError
from nnssl.training.factory import trainer_class
from nnssl.training.finetuner import nnSSLFinetuner
from tests.tiny import stop_after

SHORT = """
kind: finetune
training: {num_epochs: 2, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1}
labels: {patients: 1}
"""


@pytest.fixture
def finetune(tiny_dataset, trainer_yaml):
    """`finetune(text, name=...)`: a fine-tuning trainer of a YAML text."""

    def build(text=SHORT, name="nnSSLTestTrainer", configuration="2d", fold=0, **plans):
        trainer_yaml(name, text)
        kind = type(name, (nnSSLFinetuner,), {"config_name": name})
        return tiny_dataset.trainer(kind, configuration, fold, **plans)

    return build


@pytest.fixture
def pretrained(tiny_dataset):
    """`pretrained(folder=...)`: writes a finished pre-training run with recognisable weights."""

    def write(trainer="nnSSLPreTrainer", fold=0, name="checkpoint_final.pth", **own):
        source = tiny_dataset.trainer(nnUNetTrainer, "2d", 0, continue_training=False)
        source.output_folder = str(tiny_dataset.results)
        source.initialize()
        with torch.no_grad():
            for parameter in source.network.parameters():
                parameter.fill_(0.125)
        folder = tiny_dataset.results / f"{trainer}__nnUNetPlans__2d" / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        train = [f"p{p}_f{f}" for p in range(1, 5) for f in range(2)]
        part = {
            "kind": "pretrain",
            "objective": "contrastive",
            "trained_keys": trained_keys(source.network, Trained()),
            "plans": tiny_dataset.plans,
            "configuration": "2d",
            "dataset": tiny_dataset.results.name,
            "cases": {"train": train, "left_out": []},
        }
        weights = plain_state_dict(source.network)
        save_atomically({"network_weights": weights, "nnssl": {**part, **own}}, folder / name)
        return folder / name

    return write


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def split_of(trainer):
    trainer.initialize()
    return trainer.do_split()


def final_of(trainer):
    return read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def test_constructor_adds_no_arguments():
    ours, stock = (inspect.signature(kind.__init__) for kind in (nnSSLFinetuner, nnUNetTrainer))
    assert list(ours.parameters) == list(stock.parameters)


def test_the_road(finetune, pretrained, tiny_dataset):
    source = pretrained()
    trainer = finetune()
    trainer.run_training()
    folder = Path(trainer.output_folder)
    final = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert final["trainer_name"] == "nnUNetTrainer"
    assert final["current_epoch"] == 2
    assert final["nnssl"]["kind"] == "finetune"
    assert final["nnssl"]["weights"]["source"] == str(source)
    assert final["nnssl"]["weights"]["share"] == 1.0
    assert final["nnssl"]["weights"]["contaminated"] is False
    told = json.loads((folder / "transfer.json").read_text())
    assert told["parameters"] == final["nnssl"]["weights"]["parameters"]
    assert told["share_of_encoder"] == 1
    labelled = json.loads((folder / "labelled_cases.json").read_text())
    assert (labelled["unit"], labelled["number_of_patients"], labelled["number_of_volumes"]) == (
        "patients",
        1,
        2,
    )
    assert labelled["number_of_slices"] == 16
    assert (
        yaml.safe_load((folder / "resolved_config.yaml").read_text())["name"] == "nnSSLTestTrainer"
    )
    assert "100.0%" in log_of(trainer)
    assert "Epoch 1 of 2: " in log_of(trainer)
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    for key, name in (("train_loss", "train_losses"), ("pseudo_dice", "mean_fg_dice")):
        assert [row[key] for row in rows] == [str(value) for value in final["logging"][name]]
    assert all(float(row["epoch_seconds"]) > 0 for row in rows)
    assert not (folder / "checkpoint_latest.pth").exists()
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder.parent), (0,))
    assert same(dict(predictor.network.state_dict()), final["network_weights"])


def test_stock_checkpoint_keys_are_all_there(finetune, tiny_dataset):
    ours = finetune("extends: nnSSLScratchTrainer")
    stock = tiny_dataset.trainer(nnUNetTrainer, continue_training=False)
    for trainer, name in ((ours, "a"), (stock, "b")):
        trainer.initialize()
        trainer.save_checkpoint(str(tiny_dataset.configs / name))
    kept = torch.load(tiny_dataset.configs / "a", weights_only=True)
    assert torch.load(tiny_dataset.configs / "b", weights_only=False).keys() <= kept.keys()


def test_stopped_anywhere_the_run_ends_with_the_same_weights(finetune, pretrained, capsys):
    pretrained()
    knobs = "freeze_encoder_epochs: 1, rewarm_all: true, layer_decay: 0.5, start_decay: 0.1"
    released = SHORT.replace("{num_epochs", f"{{{knobs}, num_epochs")
    whole = finetune(released, "nnSSLWholeTrainer")
    whole.run_training()
    for stop_at in (1, 2, 3):
        part = finetune(released, f"nnSSLPart{stop_at}Trainer")
        stop_after(part, stop_at)
        with pytest.raises(SystemExit) as left:
            part.run_training()
        assert left.value.code == 128 + signal.SIGTERM
        resumed = finetune(released, f"nnSSLPart{stop_at}Trainer")
        resumed.load_checkpoint(str(Path(part.output_folder) / "checkpoint_latest.pth"))
        resumed.run_training()
        ends = [final_of(trainer) for trainer in (whole, resumed)]
        assert same(ends[0]["network_weights"], ends[1]["network_weights"])
        for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
            assert ends[0]["logging"][key] == ends[1]["logging"][key], key
    again = finetune(released, "nnSSLPart3Trainer")  # as after a kill in the validation
    again.load_checkpoint(str(Path(again.output_folder) / "checkpoint_final.pth"))
    again.run_training()
    groups = [final_of(trainer)["optimizer_state"]["param_groups"] for trainer in (whole, again)]
    assert groups[0] == groups[1]
    assert "logging issue" not in capsys.readouterr().out


def test_stopped_at_the_first_batch_of_an_epoch_or_in_its_validation(finetune):
    trainer = finetune("extends: nnSSLScratchTrainer\n" + SHORT.split("\n", 2)[2])
    trainer.on_train_start()
    trainer.stop.signal = signal.SIGTERM
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    for losses in ([], [0.5] * trainer.settings.num_iterations_per_epoch):
        trainer.on_train_epoch_start()
        trainer.epoch_losses = losses
        with pytest.raises(SystemExit):
            trainer.leave_while_waiting(60)
        assert read_checkpoint(latest)["current_epoch"] == 0
        resumed = finetune("extends: nnSSLScratchTrainer\n" + SHORT.split("\n", 2)[2])
        resumed.load_checkpoint(str(latest))
        assert resumed.step == len(losses)


@pytest.mark.parametrize("kind", ["nnSSLScratchTrainer", "nnSSLMAETrainer"])
def test_the_file_that_a_resume_takes_is_written_last(kind, finetune, tiny_dataset, monkeypatch):
    """Else a kill between the two files would forget that this epoch was the best."""
    monkeypatch.setenv("nnssl_overrides", "num_epochs=2 save_every=1 num_iterations_per_epoch=1")
    trainer = tiny_dataset.trainer(trainer_class(kind))
    saved = []
    save = type(trainer).save_checkpoint

    def note(self, file):
        saved.append(Path(file).name)
        save(self, file)
        if saved[-1] == "checkpoint_latest.pth":
            saved.append(read_checkpoint(file)["current_epoch"])

    monkeypatch.setattr(type(trainer), "save_checkpoint", note)
    trainer.run_training()
    assert saved[:3] == ["checkpoint_best.pth", "checkpoint_latest.pth", 1]
    assert saved[-1] == "checkpoint_final.pth"


def test_ten_minutes_are_a_reason_to_save(finetune):
    trainer = finetune("extends: nnSSLScratchTrainer\n" + SHORT.split("\n", 2)[2])
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert not latest.exists()
    trainer._last_save -= 601
    trainer.train_step(next(trainer.dataloader_train))
    assert read_checkpoint(latest)["current_epoch"] == 0
    trainer.close()


def test_twins_share_batches_and_what_stays_random(finetune, pretrained):
    pretrained()
    tuned = finetune(name="nnSSLATrainer")
    scratch = finetune(SHORT + "weights: {source: none}", name="nnSSLBTrainer")
    for trainer in (tuned, scratch):
        trainer.on_train_start()
    a, b = (next(trainer.dataloader_train) for trainer in (tuned, scratch))
    assert torch.equal(a["data"], b["data"])
    assert list(a["keys"]) == list(b["keys"])
    states = [trainer.network.state_dict() for trainer in (tuned, scratch)]
    loaded = set(tuned.weights_record["loaded"])
    encoder = [key for key in states[0] if key.startswith("encoder.") and key in loaded]
    assert encoder
    assert all(torch.all(states[0][key] == 0.125) for key in encoder)
    decoder = [key for key in states[0] if key.startswith(("decoder.stages", "decoder.seg"))]
    assert decoder
    assert all(torch.equal(states[0][key], states[1][key]) for key in decoder)
    assert {case[:2] for case in a["keys"]} == set(tuned.labelled.patients)
    for trainer in (tuned, scratch):
        trainer.close()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_batches_do_not_depend_on_workers_but_on_step_and_seed(finetune, monkeypatch, workers):
    scratch = SHORT + "weights: {source: none}"
    trainer = finetune(scratch)
    trainer.initialize()
    reference = [next(loader) for loader in trainer.get_dataloaders() for _ in range(2)]
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    other = finetune(scratch)
    other.initialize()
    again = [next(loader) for loader in other.get_dataloaders() for _ in range(2)]
    assert get_allowed_n_proc_DA() == int(workers)
    for a, b in zip(reference, again, strict=True):
        assert torch.equal(a["data"], b["data"])
        assert all(torch.equal(s, t) for s, t in zip(a["target"], b["target"], strict=True))
    assert not torch.equal(reference[0]["data"], reference[1]["data"])
    monkeypatch.setenv("nnssl_overrides", "training.seed=1")
    third = finetune(scratch)
    third.initialize()
    assert not torch.equal(next(third.get_dataloaders()[0])["data"], reference[0]["data"])


def test_resume_takes_the_stored_settings_and_refuses_others(finetune, monkeypatch):
    scratch = SHORT + "weights: {source: none}"
    trainer = finetune(scratch)
    trainer.on_train_start()
    trainer.save_checkpoint(trainer.latest_checkpoint)
    trainer.close()
    latest = trainer.latest_checkpoint
    resumed = finetune(scratch.replace("num_epochs: 2", "num_epochs: 3"))
    resumed.load_checkpoint(latest)
    assert resumed.num_epochs == 2
    resumed.on_train_start()
    assert resumed.num_epochs == resumed.lr_scheduler.epochs == 3
    assert "training.num_epochs changed from 2 to 3" in log_of(resumed)
    resumed.close()
    refused = finetune(scratch + "\n")
    monkeypatch.setenv("nnssl_overrides", "training.initial_lr=0.5")
    refused.load_checkpoint(latest)
    with pytest.raises(ValueError, match=r"training\.initial_lr: stored 0\.01, today 0\.5"):
        refused.on_train_start()


def test_after_a_resume_no_weights_are_searched(finetune, pretrained, monkeypatch):
    source = pretrained()
    trainer = finetune()
    trainer.on_train_start()
    trainer.save_checkpoint(trainer.latest_checkpoint)
    trainer.close()
    source.unlink()
    resumed = finetune()
    resumed.load_checkpoint(trainer.latest_checkpoint)
    resumed.on_train_start()
    assert [g["name"] for g in resumed.optimizer.param_groups] == ["encoder", "random"]
    resumed.close()


def test_validation_alone_needs_no_weights_and_keeps_the_stored_configuration(finetune):
    trainer = finetune(SHORT + "weights: {source: none}")
    trainer.run_training()
    later = finetune(SHORT.replace("patients: 1", "patients: 3"))
    later.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    train, val = later.do_split()
    assert len(train) == 2
    assert val == ["p0_f0", "p0_f1"]


def test_finished_run_with_other_settings_is_not_overwritten(finetune):
    scratch = SHORT + "weights: {source: none}"
    finetune(scratch).run_training()
    changed = scratch.replace("patients: 1", "patients: 2")
    with pytest.raises(RuntimeError, match=r"labels\.patients: stored 1, today 2"):
        finetune(changed).on_train_start()
    start_and_close(finetune(changed.replace("num_epochs: 2", "num_epochs: 2, overwrite: true")))


def start_and_close(trainer):
    trainer.on_train_start()
    trainer.close()


def test_pretrained_weights_flag_is_seen_and_nothing_is_searched(finetune, pretrained, monkeypatch):
    file = pretrained()
    other = pretrained(trainer="nnSSLOtherTrainer")
    trainer = finetune()
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(file))
    trainer.on_train_start()
    assert trainer.weights_record["how"] == "-pretrained_weights"
    assert "nothing is searched" in log_of(trainer)
    assert [g["name"] for g in trainer.optimizer.param_groups] == ["encoder", "decoder", "random"]
    trainer.close()

    different = read_checkpoint(other)
    different["network_weights"] = {k: v + 1 for k, v in different["network_weights"].items()}
    save_atomically(different, other)
    for named, text in ((file, ""), (other, "other weights than those of")):
        monkeypatch.setenv("nnssl_pretrained_weights", str(named))
        trainer = finetune()
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(file))
        if text:
            with pytest.raises(ValueError, match=text):
                trainer.on_train_start()
        else:
            trainer.on_train_start()
            trainer.close()
            # the decoder of an encoder's pre-training is as random as before
            assert [g["name"] for g in trainer.optimizer.param_groups] == ["encoder", "random"]


def test_pretrained_weights_flag_contradicts_random_weights(finetune, pretrained):
    trainer = finetune(SHORT + "weights: {source: none}")
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(pretrained()))
    with pytest.raises(ValueError, match="random by design"):
        trainer.on_train_start()


@pytest.mark.parametrize("whole", [True, False])
def test_a_decoder_trained_without_skips_gives_only_what_it_trained(finetune, pretrained, whole):
    """As PCRLv2 writes it; records of older versions without the entry give the whole decoder."""
    trainer = finetune()
    trainer.initialize()
    record = {} if whole else {"trained_inputs": inputs_without_skips(trainer.network)}
    pretrained(trained_keys=trained_keys(trainer.network, Trained(None, None)), **record)
    trainer.on_train_start()
    state = trainer.network.state_dict()
    for key, count in inputs_without_skips(trainer.network).items():
        assert torch.all(state[key][:, :count] == 0.125)
        assert bool(torch.all(state[key][:, count:] == 0.125)) is whole
    assert ("had switched off" in log_of(trainer)) is not whole


def name_in_variable(monkeypatch, trainer, file):
    monkeypatch.setenv("nnssl_pretrained_weights", str(file))
    trainer.initialize()


def give_to_nnunet(monkeypatch, trainer, file):
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "-pretrained_weights", str(file)])
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(file))


@pytest.mark.parametrize("give", [name_in_variable, give_to_nnunet])
@pytest.mark.parametrize("fold", ["all", 1])
def test_weights_of_the_same_dataset_that_saw_validation_patients_are_refused(
    finetune, pretrained, monkeypatch, give, fold
):
    everyone = [f"p{p}_f{f}" for p in range(5) for f in range(2)]
    file = pretrained(fold=fold, cases={"train": everyone, "left_out": []})
    trainer = finetune()
    give(monkeypatch, trainer, file)
    with pytest.raises(ValueError, match="have seen what this fold evaluates"):
        trainer.on_train_start()
    trainer = finetune(SHORT + "weights: {allow_contamination: true}")
    give(monkeypatch, trainer, file)
    trainer.on_train_start()
    record = trainer.weights_record
    assert (record["contaminated"], record["source"]) == (True, str(file))
    assert record["seen_validation_cases"] == ["p0_f0", "p0_f1"]
    assert record["contamination"]
    assert "CONTAMINATED (allow_contamination)" in log_of(trainer)
    trainer.close()


def test_an_all_run_is_not_found_for_a_fold(finetune, pretrained):
    pretrained(fold="all")
    with pytest.raises(FileNotFoundError, match="No finished pre-training run"):
        finetune().on_train_start()


def test_other_plans_are_told(finetune, pretrained, tiny_dataset):
    plans = deepcopy(tiny_dataset.plans)
    plans["configurations"]["2d"]["spacing"] = [3.0, 3.0]
    pretrained(plans=plans)
    trainer = finetune()
    trainer.on_train_start()
    assert "spacing: the weights were trained with [3.0, 3.0]" in log_of(trainer)
    trainer.close()


def test_stock_model_as_source(finetune, pretrained, monkeypatch):
    file = pretrained()
    stock = {"network_weights": read_checkpoint(file)["network_weights"]}
    save_atomically(stock, file.with_name("stock.pth"))
    monkeypatch.setenv("nnssl_pretrained_weights", str(file.with_name("stock.pth")))
    trainer = finetune()
    trainer.on_train_start()
    loaded = trainer.weights_record["loaded"]
    assert any(key.startswith("decoder.") for key in loaded)
    assert not any("seg_layers" in key for key in loaded)
    assert trainer.weights_record["contaminated"] is None
    assert "cannot be told" in log_of(trainer)
    trainer.close()


def test_split_is_put_back_and_a_fold_beyond_it_refused(finetune, tiny_dataset):
    (tiny_dataset.preprocessed / "splits_final.json").unlink()
    train, val = split_of(finetune(SHORT.replace("patients: 1", "patients: 4")))
    assert (len(train), val) == (8, ["p0_f0", "p0_f1"])
    with pytest.raises(ValueError, match="fold 2"):
        split_of(finetune(fold=2))


def test_split_that_parts_a_patient_is_refused(finetune, tiny_dataset):
    parted = [{"train": ["p0_f0", "p1_f0"], "val": ["p0_f1"]}]
    (tiny_dataset.preprocessed / "splits_final.json").write_text(json.dumps(parted))
    with pytest.raises(ValueError, match="p0"):
        split_of(finetune())


def test_budget_with_fold_all_is_refused(finetune):
    with pytest.raises(ValueError, match="numbered fold"):
        split_of(finetune(fold="all"))
    train, val = split_of(finetune("kind: finetune", fold="all"))
    assert len(train) == len(val) == 10


def test_3d_one_step(finetune):
    trainer = finetune(SHORT + "weights: {source: none}", configuration="3d_fullres")
    trainer.on_train_start()
    loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
    assert loss == loss
    trainer.close()


def test_parts_of_patients_that_nobody_told_of_are_said(finetune, tiny_dataset, tmp_path):
    for folder in (tiny_dataset.preprocessed / "nnssl", tiny_dataset.raw):
        (folder / "cases.json").unlink()
    trainer = finetune(SHORT + "weights: {source: none}")
    trainer.on_train_start()
    trainer.close()
    assert "10 cases look like parts of 5 patients (p0: p0_f0, p0_f1;" in log_of(trainer)
    assert "nnssl_cases -d 999 --patient '(.+)_'" in log_of(trainer)


def test_a_case_with_values_that_are_not_finite_is_named() -> None:
    """nnU-Net would log a loss of nan, and go on."""

    class Loader:
        def generate_train_batch(self):
            image = torch.zeros(2, 1, 4, 4)
            image[1, 0, 0, 0] = float("nan")
            return {"data": image, "target": image, "keys": ["good", "bad"]}

    with pytest.raises(CaseError, match="case bad: 1 preprocessed voxels are not finite"):
        SeededBatches(Loader(), 0, "train")(0)


def test_a_loss_that_stays_nan_stops_the_run(finetune):
    text = "extends: nnSSLScratchTrainer" + SHORT.removeprefix("\nkind: finetune")
    trainer = finetune(text.replace("per_epoch: 2", "per_epoch: 20", 1))
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    for _ in range(9):
        trainer.train_step(next(trainer.dataloader_train))
    with pytest.raises(RuntimeError, match="not finite in 10 steps on end"):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.close()


@pytest.mark.parametrize("variable", ["nnUNet_results", "nnUNet_preprocessed"])
def test_a_variable_that_is_not_set_is_named(finetune, monkeypatch, variable):
    monkeypatch.delenv(variable)
    with pytest.raises(ValueError, match=f"variable {variable} is not set"):
        finetune()
