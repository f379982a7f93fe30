"""Pre-training in stages: the weights that a run starts from, whole, frozen, and handed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from building import make_objective
from toys import MomentumTarget

from nnssl.common.files import hash_file
from nnssl.finetuning.weights import asked_keys
from nnssl.modules import unet
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.nnunet.runs import WeightSource, find_finished_run, list_runs
from nnssl.training import pretraining_loop
from nnssl.training.factory import trainer_class
from nnssl.training.finetuning_weights import fit_checkpoint
from nnssl.training.initial_weights import load_initial
from nnssl.training.pretrainer import nnSSLPretrainer

SHORT = (
    "training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1, "
    "patch_size: [16, 16], warmup_epochs: 0%s}\nprobe: {probe_at_end: false}\n"
)
FIRST = "nnSSLFirstTrainer"
SMALL = "objective: {hidden_features: 16, embedding_features: 8}\nsampling: {partitions: 2}\n"


@pytest.fixture
def make(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., nnSSLPretrainer]:
    """`make(name, training, parent)`: a trainer of two steps."""
    monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)

    def build(name: str, training: str = "", parent: str = "nnSSLMAETrainer") -> Any:
        more = SMALL if parent == "nnSSLContrastiveTrainer" else ""
        trainer_yaml(name, f"extends: {parent}\n{SHORT % training}{more}")
        trainer_class.cache_clear()
        return tiny_dataset.trainer(trainer_class(name))

    return build


@pytest.fixture
def first(make: Callable[..., Any]) -> nnSSLPretrainer:
    """A finished run that trained the encoder only."""
    trainer = make(FIRST, parent="nnSSLContrastiveTrainer")
    trainer.run_training()
    return trainer


def final_of(trainer: Any) -> Path:
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def test_a_run_of_the_named_trainer_is_found_and_fine_tuning_takes_the_last(
    first: Any, make: Callable[..., Any]
) -> None:
    """Three lines: one trainer, another that names it, and fine-tuning needs no name."""
    second = make("nnSSLSecondTrainer", f", initial_weights: {FIRST}")
    second.run_training()
    own = read_checkpoint(final_of(second))["nnssl"]
    file = final_of(first)
    assert own["identity"]["weights"] == {"file": str(file), "sha256": hash_file(file)}
    assert [each["kind"] for each in own["ancestors"]] == ["pretrain"]
    assert f"Initial weights from {file}" in Path(second.log_file).read_text()
    assert find_finished_run(first.location, None) == final_of(second)
    lines = {run.trainer: run.command for run in list_runs(Path(first.output_folder).parents[2])}
    assert lines["nnSSLSecondTrainer"].startswith("nnUNetv2_train Dataset999_Tiny 2d 0")
    assert lines[FIRST].startswith(f"export nnssl_pretrained_weights={file}; nnUNetv2_train")
    third = make("nnSSLThirdTrainer")  # of other ancestors: now nobody can tell which is meant
    third.run_training()
    with pytest.raises(ValueError, match="2 finished pre-training runs fit") as caught:
        find_finished_run(first.location, None)
    assert FIRST not in str(caught.value)


def test_a_frozen_encoder_is_taken_whole_kept_and_handed_on(
    first: Any, make: Callable[..., Any]
) -> None:
    second = make("nnSSLSecondTrainer", f", initial_weights: {FIRST}, encoder_lr_scale: 0")
    second.initialize()
    network = second.objective.network
    learning = {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert learning == {"decoder"}
    second.run_training()
    modes = {module.training for module in unet.encoder_modules(network)}
    assert modes == {False}  # so that running statistics stay
    before, after = (read_checkpoint(final_of(run)) for run in (first, second))
    assert before["nnssl"]["trained_keys"]
    for key in before["nnssl"]["trained_keys"]:
        assert torch.equal(before["network_weights"][key], after["network_weights"][key]), key
    changed = second.history.values
    assert changed["weight_change_stage_0"] == [0.0]
    own = after["nnssl"]
    keys = set(asked_keys(network, "trained"))  # what fine-tuning takes: all but the outputs
    assert keys == {key for key in own["trained_keys"] if ".seg_layers." not in key}
    assert own["trained"]["encoder_stages"] == 0
    assert own["ancestors"]
    again = make("nnSSLSecondTrainer", f", initial_weights: {FIRST}, encoder_lr_scale: 0")
    final_of(first).unlink()  # a resume has its own weights
    again.load_checkpoint(str(final_of(second)))
    again.begun = dict(again.begun)
    again.go_on()
    assert again.compose_checkpoint()["nnssl"]["trained_keys"] == own["trained_keys"]
    assert again.find_weights() == own["identity"]["weights"]


def test_local_contrast_hands_on_the_encoder_and_its_levels_of_the_decoder(
    first: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third line, fine-tuning: all of the encoder from the first run, one level of this."""
    monkeypatch.setenv("nnssl_overrides", "levels=1 window=1")
    training = f", initial_weights: {FIRST}, encoder_lr_scale: 0"
    local = make("nnSSLLocalTrainer", training, "nnSSLLocalContrastiveTrainer")
    local.run_training()
    checkpoint = read_checkpoint(find_finished_run(first.location, None))
    taken = fit_checkpoint(local.objective.network, checkpoint, WeightSource())
    assert taken.share == taken.share_of_encoder == 1
    decoder = {".".join(key.split(".")[:3]) for key in taken.loaded if key.startswith("decoder")}
    assert decoder == {"decoder.transpconvs.0", "decoder.stages.0"}


@pytest.mark.parametrize(
    ("training", "parent", "message"),
    [
        (", encoder_lr_scale: 0", "nnSSLMAETrainer", "initial_weights: found null, but the enc"),
        (", encoder_lr_scale: 0", "nnSSLContrastiveTrainer", "objective trains the encoder only"),
        (
            ", initial_weights: nnSSLBYOLTrainer",
            "nnSSLMAETrainer",
            r"2d 0 -p nnUNetPlans -tr nnSSLBYOLTrainer\nOr name a file: training: \{initial_w",
        ),
    ],
)
def test_what_cannot_start_is_told(
    make: Callable[..., Any], training: str, parent: str, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make("nnSSLSecondTrainer", training, parent).initialize()


def test_a_frozen_encoder_must_be_filled(first: Any, make: Callable[..., Any]) -> None:
    file = final_of(first)
    checkpoint = read_checkpoint(file)
    keys = checkpoint["nnssl"]["trained_keys"]
    checkpoint["nnssl"]["trained_keys"] = [key for key in keys if "stages.1" not in key]
    part = file.with_name("part.pth")
    torch.save(checkpoint, part)
    second = make("nnSSLSecondTrainer", f", initial_weights: {part}, encoder_lr_scale: 0")
    with pytest.raises(ValueError, match=r"part\.pth.*(\n.*)*a part would stay random"):
        second.initialize()


def test_the_encoder_may_learn_more_slowly(make: Callable[..., Any]) -> None:
    trainer = make("nnSSLSlowTrainer", ", encoder_lr_scale: 0.1, initial_lr: 0.01")
    trainer.run_training()
    rest, encoder = trainer.optimizer.param_groups
    assert encoder["lr"] == pytest.approx(0.1 * rest["lr"])
    found = {id(p) for p in encoder["params"]}
    assert found == {id(p) for p in trainer.objective.network.encoder.parameters()}
    everything = [p for p in trainer.network.parameters() if p.requires_grad]
    assert len(rest["params"]) + len(encoder["params"]) == len(everything)


def test_targets_start_from_the_loaded_weights(make_unet: Callable[..., Any]) -> None:
    objective = make_objective(MomentumTarget, make_unet)
    source = {key: value + 1 for key, value in unet.plain_state_dict(objective.network).items()}
    load_initial(objective, objective.trained, {"network_weights": source})
    for key, value in objective.target.module.state_dict().items():
        assert torch.equal(value, objective.network.state_dict()[key])
    assert torch.equal(objective.target.module.encoder.stages[0][0].convs[0].conv.weight,
                       source["encoder.stages.0.0.convs.0.conv.weight"])  # fmt: skip
