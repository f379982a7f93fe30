"""The pre-training trainer on a tiny dataset: checkpoints, resuming, signals, errors."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from toys import TOYS

from nnssl.data.pretraining_batches import BatchMaker
from nnssl.modules import unet
from nnssl.nnunet.checkpoint import read_checkpoint
from nnssl.objectives import OBJECTIVES
from nnssl.probe.during_training import TrainingProbe
from nnssl.training import interruptible, pretraining_loop
from nnssl.training.factory import trainer_class
from nnssl.training.pretrainer import nnSSLPretrainer

SHORT = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 2, num_iterations_per_epoch: 3, num_val_iterations_per_epoch: 1,
           patch_size: %s, warmup_epochs: 1, picture_every: 1}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8}
probe: {probe_at_end: false}
"""

FINISHED = ("clustering", "mae", "spark", "models_genesis", "pcrlv2", "rotation", "jigsaw")
TOY_TRAINING = """
training: {num_epochs: 1, num_iterations_per_epoch: 2, num_val_iterations_per_epoch: 1,
           patch_size: [16, 16], warmup_epochs: 0}
probe: {probe_at_end: false}
"""


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a short run's time; only the walk looks at what is drawn."""
    if not request.node.name.startswith("test_walk"):
        monkeypatch.setattr(pretraining_loop, "draw_progress", lambda *_: None)
        monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *_: None)


@pytest.fixture
def short(trainer_yaml: Callable[[str, str], str]) -> Callable[..., type]:
    """`short(name, extra, patch_size)`: class of a two-epoch trainer."""

    def make(name: str = "nnSSLShort", extra: str = "", patch_size: str = "[16, 16]") -> type:
        trainer_yaml(name, SHORT % patch_size + extra)
        trainer_class.cache_clear()
        return trainer_class(name)

    return make


def run(dataset: Any, kind: type, **options: Any) -> nnSSLPretrainer:
    trainer = dataset.trainer(kind, **options)
    trainer.run_training()
    trainer.perform_actual_validation()
    return trainer


def weights(trainer: nnSSLPretrainer) -> dict[str, torch.Tensor]:
    return read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["network_weights"]


@pytest.mark.parametrize(
    ("configuration", "patch_size", "fold"),
    [("2d", "[16, 16]", 0), ("3d_fullres", "[4, 16, 16]", "all")],
)
def test_walk(
    tiny_dataset: Any, short: Callable[..., type], configuration: str, patch_size: str, fold: Any
) -> None:
    """A run leaves what is promised, and moves the encoder only."""
    trainer = run(
        tiny_dataset, short(patch_size=patch_size), configuration=configuration, fold=fold
    )
    folder = Path(trainer.output_folder)
    assert {f.name for f in folder.iterdir()} >= {
        "checkpoint_final.pth", "progress.png", "report.html", "resolved_config.yaml", "pictures",
        "history.csv",
    }  # fmt: skip
    assert not (folder / "checkpoint_latest.pth").exists()
    assert not list(folder.glob("checkpoint_preflight*"))
    history = trainer.history.values
    assert len(history["train_loss"]) == len(history["val_loss"]) == 2
    if configuration == "2d":  # 8 views of 2 volumes x 2 parts: 4 negatives; in 3D views may cross
        assert history["collapse_loss"][0] == pytest.approx(math.log(5), abs=1e-4)
    assert all(history[f"weight_change_stage_{s}"][-1] > 0 for s in range(2))
    assert read_rows(folder) == [
        {"epoch": str(n), **{key: str(column[n - 1]) for key, column in history.items()}}
        for n in (1, 2)
    ]
    log = Path(trainer.log_file).read_text()
    lines = re.findall(r"Epoch (\d) of 2: loss ([\d.]+) \(validation ([\d.]+), collapse ", log)
    assert [line[0] for line in lines] == ["1", "2"]
    assert float(lines[1][1]) == pytest.approx(history["train_loss"][1], rel=1e-3)
    assert float(lines[1][2]) == pytest.approx(history["val_loss"][1], rel=1e-3)
    after = log.partition(" Epoch 1 of 2")[2].splitlines()
    told = [line for line in after if "WARNING" not in line and "Validation: " not in line]
    assert len(told) == 3, "one line an epoch, and the end"
    assert "over 1 processes" not in log
    assert "0 images without labels" not in log
    assert "No label enters the weights." in log, "nothing of a probe, which is switched off"
    assert ("2 validation cases are not trained on" in log) == (fold == 0)
    assert ("fold all trains on every case" in log) == (fold == "all")


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_final_checkpoint_is_stock_and_plain(tiny_dataset: Any, short: Callable[..., type]) -> None:
    """Promise 1: stock nnU-Net takes it; it opens without nnssl and runs no code."""
    trainer = run(tiny_dataset, short())
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    stock = tiny_dataset.trainer(nnUNetTrainer, continue_training=False)
    stock.initialize()
    load_pretrained_weights(stock.network, str(file))
    loaded = stock.network.state_dict()
    assert set(checkpoint["network_weights"]) == set(loaded)
    for key, value in checkpoint["network_weights"].items():
        assert ".seg_layers." in key or torch.equal(loaded[key], value)
    own = checkpoint["nnssl"]
    assert own["kind"] == "pretrain"
    assert own["finished"]
    assert own["step"] == 6
    assert all(key.startswith("encoder.") for key in own["trained_keys"])
    assert not set(own["cases"]["train"]) & set(own["cases"]["left_out"])
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    find, folder = "recursive_find_trainer_class_by_name", str(file.parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_from_raw_data, find, trainer_class)
        with pytest.raises(RuntimeError, match="no label was learned"):
            predictor.initialize_from_trained_model_folder(folder, (0,))
    with pytest.raises(RuntimeError, match=r"Could not find .*nnSSLShort"):  # without nnssl
        recursive_find_trainer_class_by_name("nnSSLShort")


def test_the_closing_line_suggests_what_makes_sense(
    tiny_dataset: Any, short: Callable[..., type]
) -> None:
    trainer = tiny_dataset.trainer(short())
    assert trainer._suggest_next().endswith("2d 0 -p nnUNetPlans -tr nnSSLFinetuneTrainer")
    trainer.dataset_json["labels"] = {"background": 0, "foreground": 1}
    told = trainer._suggest_next()
    assert "no labels but masks of the foreground, so fine-tune these weights on another" in told
    assert f"nnssl_plan_like {trainer.output_folder}/checkpoint_final.pth -d DATASET" in told
    pool = tiny_dataset.trainer(short(), nnssl_pool={"members": {}})
    assert "is a pool" in pool._suggest_next()


def test_same_seed_same_weights_and_another_seed_others(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = short(extra="\n")
    first = weights(run(tiny_dataset, kind))
    monkeypatch.setenv("nnssl_overrides", "training.overwrite=true")
    again = weights(run(tiny_dataset, kind))
    assert all(torch.equal(first[k], again[k]) for k in first)
    monkeypatch.setenv("nnssl_overrides", "training.seed=1 training.overwrite=true")
    other = weights(run(tiny_dataset, kind))
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_stopped_and_resumed_equals_uninterrupted(
    tiny_dataset: Any, short: Callable[..., type], stop_at: int
) -> None:
    """Inside an epoch and at its end; weights, heads, history and steps are the same."""
    kind = short()
    whole = run(tiny_dataset, kind)
    expected, history = weights(whole), whole.history.values
    for file in Path(whole.output_folder).glob("*.pth"):
        file.unlink()

    trainer = tiny_dataset.trainer(kind)
    step = trainer.train_step

    def stopping(batch: Any) -> Any:
        if trainer.step == stop_at - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(batch)

    trainer.train_step = stopping
    with pytest.raises(SystemExit):
        trainer.run_training()
    resumed = tiny_dataset.trainer(kind)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert resumed.step == stop_at
    resumed.run_training()
    found = weights(resumed)
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    for key in ("train_loss", "val_loss", "accuracy"):
        assert resumed.history.values[key] == pytest.approx(history[key])
    rows = read_rows(Path(resumed.output_folder))
    assert [row["train_loss"] for row in rows] == [str(loss) for loss in history["train_loss"]]


def test_killed_in_the_last_probe_the_resumed_run_has_probe_and_pictures(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = short()
    monkeypatch.setenv("nnssl_overrides", "probe.probe_at_end=true")
    trainer = tiny_dataset.trainer(kind)

    class Killed(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(TrainingProbe, "run", kill)
    with pytest.raises(Killed):
        trainer.run_training()
    trainer.close()
    drawn: list[str] = []
    monkeypatch.setattr(TrainingProbe, "run", lambda *_: {"probe_dice": 0.5, "probe_seconds": 1})
    monkeypatch.setattr(pretraining_loop, "save_pictures", lambda *names: drawn.append(names[3]))
    for file in ("checkpoint_latest.pth", "checkpoint_final.pth"):
        resumed = tiny_dataset.trainer(kind)
        resumed.load_checkpoint(str(Path(trainer.output_folder) / file))
        resumed.run_training()
        stored = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
        assert stored["nnssl"]["history"]["probe_dice"] == [None, 0.5]
        assert stored["nnssl"]["history"]["train_loss"][-1] is not None
        monkeypatch.setattr(TrainingProbe, "run", kill)  # a finished run is not probed again
    assert drawn == ["epoch_0002"] * 2


def hang_at_four(maker: BatchMaker, step: int) -> Any:
    if step == 4:
        sleep(2)  # steps before are taken meanwhile
        os.kill(os.getppid(), signal.SIGTERM)
        sleep(1000)
    return make_batch(maker, step)


make_batch = BatchMaker.__call__


def test_a_stop_signal_is_heard_while_a_batch_is_awaited(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(BatchMaker, "__call__", hang_at_four)
    monkeypatch.setattr(interruptible, "SECONDS_FOR_LAST_BATCH", 0.0)
    trainer = tiny_dataset.trainer(short())
    with pytest.raises(SystemExit) as left:
        trainer.run_training()
    assert left.value.code == 128 + signal.SIGTERM
    stored = read_checkpoint(Path(trainer.output_folder) / "checkpoint_latest.pth")["nnssl"]
    assert 1 <= stored["step"] <= 4  # a busy machine has not taken all steps before
    assert not multiprocessing.active_children()


def test_resuming_with_another_temperature_prints_both_values(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = run(tiny_dataset, short())
    monkeypatch.setenv("nnssl_overrides", "objective.temperature=0.25")
    resumed = tiny_dataset.trainer(type(trainer))
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    resumed.perform_actual_validation()  # the stored temperature serves
    with pytest.raises(ValueError, match=r"objective.temperature: stored 0\.1, today 0\.25"):
        resumed.on_train_start()


def test_resuming_with_more_epochs_goes_on(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = run(tiny_dataset, short())
    monkeypatch.setenv("nnssl_overrides", "num_epochs=3")
    resumed = tiny_dataset.trainer(type(trainer))
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    resumed.run_training()
    assert resumed.step == 9
    assert len(resumed.history.values["train_loss"]) == 3


def test_a_finished_run_with_another_configuration_is_not_overwritten(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = short()
    run(tiny_dataset, kind)
    monkeypatch.setenv("nnssl_overrides", "temperature=0.5")
    with pytest.raises(RuntimeError, match="overwrite"):
        run(tiny_dataset, kind)


def test_a_finetuned_or_stock_checkpoint_is_refused_on_resume(
    tiny_dataset: Any, short: Callable[..., type]
) -> None:
    trainer = tiny_dataset.trainer(short())
    with pytest.raises(ValueError, match="initial_weights"):
        trainer.load_checkpoint({"network_weights": {}})


@pytest.fixture(params=["float32", "float16"])
def begun(request: pytest.FixtureRequest, tiny_dataset: Any, short: Callable[..., type]) -> Any:
    """A trainer before its first step; with float16 its gradients are scaled, as on CUDA."""
    trainer = tiny_dataset.trainer(short())
    trainer.on_train_start()
    if request.param == "float16":
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    return trainer


def _state(trainer: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.objective.state_dict().items()}


def test_after_step_follows_every_step_with_the_share_that_is_done(begun: Any) -> None:
    """Targets, banks and running means live on it; it gets the batch of its own step."""
    told = []
    begun.objective.after_step = lambda batch, progress: told.append((batch, progress))
    for step in range(2):
        begun.train_step(begun.batch_maker(step))
    assert [progress for _, progress in told] == pytest.approx([1 / 6, 2 / 6])
    assert [int(batch["key"][0, 1]) for batch, _ in told] == [0, 1]
    assert all("global_0" in batch["views"] for batch, _ in told)


def test_the_best_checkpoint_has_the_lowest_smoothed_loss(
    tiny_dataset: Any, short: Callable[..., type]
) -> None:
    """Smoothed: 3, 2.9, 3.51, 3.36, 3.12, 2.81."""
    trainer = tiny_dataset.trainer(short())
    trainer.initialize()
    better = []
    for epoch, loss in enumerate((3, 2, 9, 2, 1, 0)):
        trainer.history.log(epoch, {"val_loss": loss})
        better.append(trainer._is_better())
    assert better == [True, True, False, False, False, True]


def test_a_step_that_is_not_finite_leaves_nothing_and_is_counted(begun: Any) -> None:
    before = _state(begun)
    assert any("running_var" in key for key in before)
    batch = begun.batch_maker(0)
    batch["image"][:] = float("nan")
    begun.objective.after_step = lambda *_: pytest.fail("a skipped step is no step")
    for _ in range(begun.settings.max_skipped_steps):
        assert begun.train_step(batch) == {}
    assert begun.skipped_steps == begun.settings.max_skipped_steps
    torch.testing.assert_close(_state(begun), before, rtol=0, atol=0)
    assert not begun.optimizer.state
    with pytest.raises(RuntimeError, match="not finite"):
        begun.train_step(batch)


def test_a_step_whose_gradient_is_not_finite_leaves_nothing(begun: Any) -> None:
    before = _state(begun)
    parameter = next(p for p in begun.network.parameters() if p.requires_grad)
    broken = parameter.register_hook(lambda gradient: gradient * float("inf"))
    assert begun.train_step(begun.batch_maker(0)) == {}
    assert begun.skipped_steps == 1
    torch.testing.assert_close(_state(begun), before, rtol=0, atol=0)
    scaler = begun.grad_scaler
    assert scaler is None or scaler.get_scale() == 512
    broken.remove()
    assert begun.train_step(begun.batch_maker(1))
    assert begun.skipped_steps == 1
    after = _state(begun)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_preflight_refuses_images_with_nan(tiny_dataset: Any, short: Callable[..., type]) -> None:
    trainer = tiny_dataset.trainer(short())
    trainer.initialize()
    make = trainer.batch_maker

    class Broken:
        sampler = make.sampler

        def __call__(self, step: int) -> Any:
            batch = make(step)
            batch["image"][:] = float("nan")
            return batch

    trainer.__dict__["batch_maker"] = Broken()
    trainer.dataloader_train, trainer.dataloader_val = None, None
    with pytest.raises(RuntimeError, match="Pre-flight"):
        trainer._preflight(Path(trainer.output_folder))


def test_preflight_leaves_no_trace(tiny_dataset: Any, short: Callable[..., type]) -> None:
    trainer = tiny_dataset.trainer(short())
    trainer.initialize()
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer._preflight(Path(trainer.output_folder))
    assert all(torch.equal(before[k], v) for k, v in trainer.network.state_dict().items())
    assert all(p.grad is None for p in trainer.network.parameters())
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_validation_cases_are_never_drawn(tiny_dataset: Any, short: Callable[..., type]) -> None:
    trainer = tiny_dataset.trainer(short())
    trainer.initialize()
    drawn = {name for step in range(30) for name in trainer.batch_maker(step)["identifier"]}
    assert drawn
    assert all(not name.startswith("p0_") for name in drawn)


@pytest.mark.parametrize(
    ("fold", "message"), [(7, "has 2 folds"), (0, "both training and validation")]
)
def test_dishonest_splits_are_refused(
    tiny_dataset: Any, short: Callable[..., type], fold: int, message: str
) -> None:
    if fold == 0:
        import json

        file = tiny_dataset.preprocessed / "splits_final.json"
        splits = json.loads(file.read_text())
        splits[0]["train"].append(splits[0]["val"].pop())
        file.write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=message):
        tiny_dataset.trainer(short(), fold=fold).initialize()


def test_patch_as_large_as_the_volume_says_which_patch_would_do(
    tiny_dataset: Any, short: Callable[..., type]
) -> None:
    kind = short(patch_size="[8, 16, 16]")
    with pytest.raises(ValueError, match=r"\(a patch of at most 7 voxels on that axis\)"):
        run(tiny_dataset, kind, configuration="3d_fullres")


def test_initial_weights_are_taken(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tiny_dataset, short())
    source = Path(first.output_folder) / "checkpoint_final.pth"
    monkeypatch.setenv("nnssl_overrides", f"initial_weights={source}")
    second = tiny_dataset.trainer(short("nnSSLSecond"))
    second.initialize()
    expected = unet.plain_state_dict(first.objective.network)
    assert all(
        torch.equal(expected[k], v) for k, v in second.objective.network.state_dict().items()
    )


def test_disabled_checkpointing_writes_none(tiny_dataset: Any, short: Callable[..., type]) -> None:
    trainer = tiny_dataset.trainer(short())
    trainer.disable_checkpointing = True
    trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_residual_encoder_and_several_channels(
    tiny_dataset: Any, short: Callable[..., type]
) -> None:
    """The objective runs on residual-encoder plans as the planned network does."""
    from copy import deepcopy

    plans = deepcopy(tiny_dataset.plans)
    architecture = plans["configurations"]["2d"]["architecture"]
    architecture["network_class_name"] = (
        "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    )
    arguments = architecture["arch_kwargs"]
    arguments["n_blocks_per_stage"] = [1] * len(arguments.pop("n_conv_per_stage"))
    trainer = run(tiny_dataset, short(), configurations=plans["configurations"])
    assert trainer.history.values["weight_change_stage_0"][-1] > 0


def test_cascade_and_foreign_networks_are_refused(
    tiny_dataset: Any, short: Callable[..., type]
) -> None:
    from copy import deepcopy

    plans = deepcopy(tiny_dataset.plans)
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "somewhere.PrimusM"
    trainer = tiny_dataset.trainer(short(), configurations=plans["configurations"])
    with pytest.raises(ValueError, match="PrimusM"):
        trainer.initialize()


FAMILIES = {**TOYS, **{name: OBJECTIVES[name] for name in FINISHED}}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_fits_the_trainer(
    tiny_dataset: Any,
    trainer_yaml: Callable[[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """An objective of each family trains, resumes its own state and exports a stock checkpoint."""
    monkeypatch.setitem(OBJECTIVES, name, FAMILIES[name])
    trainer_yaml("nnSSLToy", f"kind: pretrain\nobjective: {{name: {name}}}\n" + TOY_TRAINING)
    trainer_class.cache_clear()
    trainer = run(tiny_dataset, trainer_class("nnSSLToy"))
    assert not trainer.sampling.structured
    assert set(trainer.views) == set(FAMILIES[name].default_views)
    resumed = tiny_dataset.trainer(type(trainer))
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for key, value in trainer.objective.state_dict().items():
        assert torch.equal(resumed.objective.state_dict()[key], value), key


def test_terms_of_an_older_version_go_on_under_their_new_names(
    tiny_dataset: Any, trainer_yaml: Callable[[str, str], str]
) -> None:
    """Of a run that was stopped inside an epoch, too."""
    trainer_yaml("nnSSLOld", "kind: pretrain\nobjective: {name: pcrlv2}\n" + TOY_TRAINING)
    trainer_class.cache_clear()
    trainer = run(tiny_dataset, trainer_class("nnSSLOld"))
    checkpoint = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
    own, new = checkpoint["nnssl"], "level_reconstruction_loss"
    history = {**own["history"]}
    own["history"]["level_restoration_loss"] = own["history"].pop(new)
    own["epoch_terms"] = [{"loss": 1.0, "level_restoration_loss": 0.5}]
    resumed = tiny_dataset.trainer(type(trainer))
    resumed.load_checkpoint(checkpoint)
    assert resumed.history.values == history
    assert resumed.epoch_terms == [{"loss": 1.0, new: 0.5}]


def test_the_closing_validation_is_that_of_the_last_epoch_or_of_loaded_weights(
    tiny_dataset: Any, short: Callable[..., type], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are the same, so nothing is computed; weights that are loaded are validated."""
    trainer = run(tiny_dataset, short())
    told = f"Validation: loss {trainer.history.last('val_loss'):.4g}"
    assert told in Path(trainer.log_file).read_text()
    computed, validate = [], nnSSLPretrainer._validate
    monkeypatch.setattr(
        nnSSLPretrainer, "_validate", lambda self: computed.append(1) or validate(self)
    )
    trainer.perform_actual_validation()
    assert not computed
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.perform_actual_validation()
    assert computed
    assert Path(trainer.log_file).read_text().count(told) == 3
