"""Plans name classes that nnU-Net imports and calls: only networks and layers that are known."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnssl.nnunet.plan_like import read_source
from nnssl.nnunet.planned_network import build_network, check_supported
from tests.tiny import tiny_plans

UNETS = "dynamic_network_architectures.architectures"


def manager_of(plans: dict[str, Any], configuration: str = "2d") -> Any:
    return PlansManager(deepcopy(plans)).get_configuration(configuration)


def changed(entry: str, value: Any, **more: Any) -> dict[str, Any]:
    """The tiny plans with another entry of the architecture, or of its `arch_kwargs`."""
    plans = tiny_plans()
    architecture = plans["configurations"]["2d"]["architecture"]
    (architecture if entry in architecture else architecture["arch_kwargs"])[entry] = value
    architecture["arch_kwargs"] |= more
    return plans


@pytest.fixture
def payload(tmp_path) -> tuple[dict[str, Any], Any]:
    """Keywords with which `subprocess.Popen` would leave a file, and that file."""
    file = tmp_path / "executed"
    return {"args": f"touch {file}", "shell": True}, file


@pytest.mark.parametrize("name", ["nonlin", "norm_op", "conv_op", "dropout_op"])
def test_a_class_that_is_no_layer_is_never_called(payload, name):
    keywords, file = payload
    plans = changed(name, "subprocess.Popen", **{f"{name}_kwargs": keywords})
    with pytest.raises(ValueError, match=f"{name} = 'subprocess.Popen'; allowed: "):
        build_network(manager_of(plans), 1, 2)
    assert not file.exists()


@pytest.mark.parametrize(
    "name",
    [
        "this.PlainConvUNet",
        "PlainConvUNet",
        "subprocess.Popen",
        f"{UNETS}.unet.ResidualUNet",
        None,
        ["PlainConvUNet"],
    ],
)
def test_only_two_classes_of_networks_are_known(name):
    with pytest.raises(ValueError, match="The plans ask for the network"):
        build_network(manager_of(changed("network_class_name", name)), 1, 2)


@pytest.mark.parametrize(
    "name",
    ["torch.nn.Linear", "nn.LeakyReLU", "other.torch.nn.LeakyReLU", "torch.nn.functional.relu", 3],
)
def test_a_layer_is_one_of_a_closed_list_by_its_full_name(name):
    with pytest.raises(ValueError, match="The plans ask for nonlin"):
        check_supported(manager_of(changed("nonlin", name)))


def test_nothing_else_is_looked_up():
    parts = ["conv_op", "norm_op", "dropout_op", "nonlin", "n_stages"]
    with pytest.raises(ValueError, match="'n_stages' looked up by name"):
        check_supported(manager_of(changed("_kw_requires_import", parts, n_stages="os.getpid")))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("nonlin", "torch.nn.modules.activation.ReLU"),
        ("nonlin", None),
        ("dropout_op", "torch.nn.modules.dropout.Dropout2d"),
        ("norm_op", "torch.nn.BatchNorm2d"),
        ("network_class_name", f"{UNETS}.unet.PlainConvUNet"),
    ],
)
def test_what_planners_write_is_built(entry, value):
    more = {"dropout_op_kwargs": {"p": 0.1}} if entry == "dropout_op" else {}
    more |= {"nonlin_kwargs": {}} if entry == "nonlin" else {}
    assert build_network(manager_of(changed(entry, value, **more)), 1, 2)


def test_a_checkpoint_with_such_plans_is_no_source_of_plans(payload):
    keywords, file = payload
    plans = changed("nonlin", "subprocess.Popen", nonlin_kwargs=keywords)
    own = {"plans": plans, "configuration": "2d", "dataset": "Dataset001_A"}
    with pytest.raises(ValueError, match="subprocess"):
        read_source({"network_weights": {}, "nnssl": own})
    assert not file.exists()
