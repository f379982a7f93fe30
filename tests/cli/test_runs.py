"""`nnssl_runs` prints a table, JSON or one message."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from nnssl.cli import runs
from nnssl.nnunet.checkpoint import save_atomically


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A finished run of dataset 999 and a damaged one."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    config = {"name": "nnSSLATrainer", "kind": "pretrain", "about": {}, "sources": []}
    config["sections"] = {"training": {"num_epochs": 3}}
    own = {"kind": "pretrain", "epoch": 3, "config": config}
    own["history"] = {"train_loss": [1.25], "weight_change_stage_0": [0.5]}
    for name in ("nnSSLATrainer", "nnSSLBTrainer"):
        folder = tmp_path / "Dataset999_Tiny" / f"{name}__nnUNetPlans__2d" / "fold_0"
        folder.mkdir(parents=True)
        (folder / "resolved_config.yaml").write_text(yaml.safe_dump(config))
        content = {"network_weights": {"w": torch.ones(2)}, "nnssl": own}
        save_atomically(content, folder / "checkpoint_final.pth")
    (folder / "checkpoint_final.pth").write_bytes(b"broken")
    return tmp_path


def test_table_with_gauges_commands_and_problems(results, capsys):
    assert runs.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[-1] == "weights moved %"
    assert lines[2].split()[1] == "nnSSLATrainer"
    assert lines[2].split()[-2:] == ["1.25", "50"]
    assert "3 of 3" in lines[2]
    assert "broken" in lines[3]
    assert lines[5].startswith("1: export nnssl_pretrained_weights=")
    assert lines[6].startswith("2: ")
    assert "cannot be read as a checkpoint" in lines[6]


def test_json(results, capsys):
    assert runs.main(["999", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["metrics"] == {"train_loss": 1.25, "weight_change": 0.5}
    assert (first["state"], second["state"]) == ("finished", "broken")
    assert first["folder"].startswith(str(results))


def test_nothing_and_mistakes(results, capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no run of dataset 5; it has Dataset999_Tiny"):
        runs.main(["5"])
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "empty"))
    assert runs.main([]) == 0
    assert "no pre-training run was found" in capsys.readouterr().out
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(SystemExit, match="nnUNet_results is not set"):
        runs.main([])
