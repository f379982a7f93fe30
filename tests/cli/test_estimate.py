"""`nnssl_estimate` prints figures or one message."""

from __future__ import annotations

import json
import re

import pytest
import torch

from nnssl.cli import estimate

NAME = "nnSSLShortCommandTrainer"
SHORT = """
extends: nnSSLContrastiveTrainer
training: {num_epochs: 4, num_iterations_per_epoch: 5, num_val_iterations_per_epoch: 0,
           patch_size: [16, 16], warmup_epochs: 1}
sampling: {partitions: 2, volumes: 2}
objective: {hidden_features: 16, embedding_features: 8}
"""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


def test_figures_as_table_and_json(tiny_dataset, trainer_yaml, capsys):
    trainer_yaml(NAME, SHORT)
    command = ["999", "2d", "0", "-tr", NAME, "-device", "cpu", "--steps", "1", "--workers", "0"]
    assert estimate.main([*command, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["steps"] == 20
    assert values["val_steps"] == 0
    assert values["hours"] == pytest.approx(20 * values["seconds_per_step"] / 3600)
    assert estimate.main(command) == 0
    text = capsys.readouterr().out
    for word in ("hours", "20 steps of", "binding", "checkpoints", "caches", "MB/s", NAME):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("999 2d 9", "has 2 folds"),
        ("998 2d 0", "998"),
        ("999 2d 0 --steps 0", "steps: found 0, allowed from 1"),
        ("999 2d 0 -p Other", "Other.json does not exist; run first"),
    ],
)
def test_bad_input_is_one_message(tiny_dataset, trainer_yaml, capsys, arguments, message):
    trainer_yaml(NAME, SHORT)
    with pytest.raises(SystemExit, match=f"nnssl_estimate: (.|\n)*{re.escape(message)}"):
        estimate.main([*arguments.split(), "-tr", NAME, "-device", "cpu"])
    assert capsys.readouterr().out == ""


def test_cluster_maps_that_no_training_makes_are_one_message(tiny_dataset, trainer_yaml):
    knobs = "training: {patch_size: [16, 16]}\nobjective: {maps: dino}\n"
    trainer_yaml(NAME, f"extends: nnSSLPixelClusteringTrainer\n{knobs}")
    with pytest.raises(SystemExit, match="nnssl_cluster -d 999 -c 2d -p nnUNetPlans -f 0"):
        estimate.main(["999", "2d", "0", "-tr", NAME, "-device", "cpu", "--steps", "1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without CUDA")
def test_a_machine_without_cuda_is_told():
    with pytest.raises(SystemExit, match="-device cpu"):
        estimate.main(["999", "2d", "0", "-device", "cuda"])
