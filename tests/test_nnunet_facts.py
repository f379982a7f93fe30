"""What nnSSL relies on in nnU-Net (design section 4); runs on the oldest and newest version."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from torch import nn

from nnssl.nnunet import registration


@pytest.fixture
def searched(tmp_path, monkeypatch) -> Path:
    """An importable package `searched_package`, in which nnU-Net's search is tried."""
    folder = tmp_path / "searched_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "searched_package"]:
        del sys.modules[name]


def find(folder: Path, name: str) -> object:
    return recursive_find_python_class(str(folder), name, "searched_package")


def test_the_installed_version_is_supported():
    assert registration.is_supported()


# Fact 1: the lookup is hasattr, so that a module-level __getattr__ answers it.
def test_the_search_asks_a_module_level_getattr(searched):
    (searched / "forward.py").write_text(
        "def __getattr__(name):\n"
        "    if name == 'Wanted':\n        return dict\n"
        "    if name == 'Broken':\n        raise ValueError('our message')\n"
        "    raise AttributeError(name)\n"
    )
    assert find(searched, "Wanted") is dict
    assert find(searched, "Other") is None
    with pytest.raises(ValueError, match="our message"):
        find(searched, "Broken")


# Fact 21: modules come before packages, so that ours is asked at every lookup of a variant.
def test_modules_are_asked_before_packages(searched):
    (searched / "a_package").mkdir()
    (searched / "a_package" / "__init__.py").touch()
    (searched / "a_package" / "variant.py").write_text("class Variant: pass\n")
    (searched / "z_module.py").write_text(
        "asked = []\ndef __getattr__(name):\n    asked.append(name)\n    raise AttributeError\n"
    )
    assert find(searched, "Variant").__name__ == "Variant"
    assert "Variant" in sys.modules["searched_package.z_module"].asked


# A half-written module must not be imported: the temporary file has another ending.
def test_other_endings_are_not_imported(searched):
    (searched / f".{registration.MODULE_NAME}.1.tmp").write_text("raise RuntimeError\n")
    assert find(searched, "Variant") is None


def test_the_trainer_folder_is_where_nnunet_looks():
    import nnunetv2

    assert registration.trainer_folder() == Path(nnunetv2.__path__[0], "training", "nnUNetTrainer")
    assert Path(inspect.getfile(nnUNetTrainer)).parent == registration.trainer_folder()


# Fact 4: the constructor's arguments, which no subclass may extend.
def test_the_constructors_arguments():
    names = list(inspect.signature(nnUNetTrainer.__init__).parameters)
    assert names == ["self", "plans", "configuration", "fold", "dataset_json", "device"]
    source = inspect.getsource(nnUNetTrainer.__init__)
    assert "inspect.signature(self.__init__).parameters" in source


# Fact 5: results and checkpoints carry the class's name.
def test_results_carry_the_classs_name():
    assert "self.__class__.__name__" in inspect.getsource(nnUNetTrainer.__init__)
    source = inspect.getsource(nnUNetTrainer.save_checkpoint)
    assert "'trainer_name': self.__class__.__name__" in source


# Fact 7: optimiser, gradient clipping and DDP see self.network.
def test_the_optimiser_sees_the_network_only():
    assert "self.network.parameters()" in inspect.getsource(nnUNetTrainer.configure_optimizers)
    assert "self.network = DDP(self.network, device_ids=" in inspect.getsource(
        nnUNetTrainer.initialize
    )


# Fact 8: our loader seeds torch where the augmenter tells it its worker.
def test_workers_tell_the_loader_their_number():
    module = inspect.getmodule(MultiThreadedAugmenter)
    assert isinstance(module, ModuleType)
    assert "set_thread_id" in inspect.getsource(module)


# Facts 9 and 10: the decoder holds the encoder, so a state dict has each of its tensors twice.
def test_the_decoder_holds_the_encoder(unet):
    assert unet.decoder.encoder is unet.encoder
    state = unet.state_dict()
    own = [key for key in state if key.startswith("encoder.")]
    assert own
    assert all(state[f"decoder.{key}"].data_ptr() == state[key].data_ptr() for key in own)


# Fact 10: weights that are merged into a copied full dict are overwritten by the aliases.
def test_aliases_overwrite_what_was_merged(make_unet):
    network, source = make_unet(2, seed=0), make_unet(2, seed=1)
    state = network.state_dict()
    new = {key: value for key, value in source.state_dict().items() if key.startswith("encoder.")}
    before = {key: state[key].clone() for key in new}
    network.load_state_dict({**{key: value.clone() for key, value in state.items()}, **new})
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in new)
    network.load_state_dict(new, strict=False)
    assert all(torch.equal(network.state_dict()[key], new[key]) for key in new)


# Fact 11: stock loading takes every key but the segmentation layers.
def test_stock_loading_skips_the_segmentation_layers(make_unet, tmp_path):
    network, source = make_unet(2, classes=3, seed=0), make_unet(2, classes=1, seed=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save({"network_weights": source.state_dict()}, tmp_path / "checkpoint.pth")
    load_pretrained_weights(network, str(tmp_path / "checkpoint.pth"))
    for key, value in network.state_dict().items():
        expected = before[key] if ".seg_layers." in key else source.state_dict()[key]
        assert torch.equal(value, expected), key


def test_stock_loading_demands_the_aliases(make_unet, tmp_path):
    network = make_unet(2)
    weights = {k: v for k, v in network.state_dict().items() if not k.startswith("decoder.encoder")}
    torch.save({"network_weights": weights}, tmp_path / "checkpoint.pth")
    with pytest.raises(AssertionError, match=r"decoder\.encoder"):
        load_pretrained_weights(network, str(tmp_path / "checkpoint.pth"))


# Fact 12: the scheduler gives every group the same rate.
def test_the_scheduler_levels_the_groups():
    from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-4, 1e-2)]
    optimizer = torch.optim.SGD(groups, lr=1e-2)
    PolyLRScheduler(optimizer, 1e-2, 10).step(0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-2]


# Fact 15: these are methods, which our trainers override.
@pytest.mark.parametrize(
    "name",
    [
        "initialize",
        "on_train_start",
        "on_train_end",
        "on_epoch_end",
        "run_training",
        "train_step",
        "validation_step",
        "save_checkpoint",
        "load_checkpoint",
        "perform_actual_validation",
        "set_deep_supervision_enabled",
        "plot_network_architecture",
        "_build_loss",
        "_do_i_compile",
        "_set_batch_size_and_oversample",
        "get_dataloaders",
        "configure_optimizers",
        "build_network_architecture",
    ],
)
def test_methods_that_our_trainers_override(name):
    assert callable(getattr(nnUNetTrainer, name))


# Fact 18: from 2.7.0 the constructor takes `continue_training` out of the plans, without default.
def test_continue_training_is_popped_from_the_plans():
    popped = 'plans.pop("continue_training")' in inspect.getsource(nnUNetTrainer.__init__)
    version = registration.nnunet_version() or "0"
    assert popped is not version.startswith("2.6.")
