"""``nnssl_plan_resnet50`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.cli.plan_resnet50 import main
from nnssl.nnunet.planned_network import build_planned_network
from nnssl.nnunet.small_plans import shrink_plans
from tests.nnunet.networks import configuration, dataset, plans

PLANS = {
    "c2d": configuration([104, 90], [1.5, 1.0], (32, 64, 128, 256), batch=12, channels=2),
    "c3d_fullres": configuration([8, 16, 16], [1.0, 1.0, 1.0], channels=2),
}


def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict, *options: str) -> dict:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset005_Target"
    folder.mkdir(exist_ok=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans(**entries)))
    (folder / "dataset.json").write_text(json.dumps(dataset(channels=2)))
    main(["-d", "5", *options])
    return json.loads((folder / "nnUNetPlansResNet50.json").read_text())


def test_plans_of_a_resnet50_within_the_planned_memory(tmp_path, monkeypatch, capsys):
    made = plan(tmp_path, monkeypatch, PLANS)
    (name,) = made["configurations"]
    new = made["configurations"][name]
    assert (name, new["patch_size"], new["spacing"]) == ("2d", [96, 96], [1.5, 1.0])
    assert new["data_identifier"] == "nnUNetPlansResNet50_2d"
    said = capsys.readouterr().out
    assert "next: nnUNetv2_preprocess -d 5 -plans_name nnUNetPlansResNet50 -c 2d" in said
    assert "only where nnssl is installed" in said
    network = build_planned_network(made, "2d", dataset(channels=2))
    planned = build_planned_network(plans(**PLANS), "2d", dataset(channels=2))
    costs = [
        net.compute_conv_feature_map_size(size) * batch
        for net, size, batch in (
            (network, [96, 96], new["batch_size"] + 1),
            (network, [96, 96], new["batch_size"]),
            (planned, [104, 90], 12),
        )
    ]
    assert costs[0] > costs[2] >= costs[1]
    parameters = sum(parameter.numel() for parameter in network.encoder.parameters())
    assert parameters == 23_508_032 - 64 * 49  # ResNet-50 without its head, two channels for three
    with pytest.raises(ValueError, match="shrink nnU-Net's plans"):
        shrink_plans(made, "2d", "Small")


def test_plans_without_2d_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="configuration is '2d'; the plans have 3d_fullres"):
        plan(tmp_path, monkeypatch, {"c3d_fullres": PLANS["c3d_fullres"]})
