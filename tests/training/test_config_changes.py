"""Runs never overwrite each other, and a resume changes nothing silently."""

from __future__ import annotations

import pytest
import torch
import yaml

from nnssl.nnunet.checkpoint import save_atomically
from nnssl.training.config_changes import compare_resume, refuse_overwrite, write_resolved_config

CONFIG = {"training": {"num_epochs": 5, "overwrite": False}, "views": {"a": {"scale": (0.8, 1.2)}}}


def finish(folder, config=CONFIG, **more):
    nnssl = {"nnssl": {"config": config}} if config is not None else {}
    weights = {"network_weights": {"a": torch.zeros(1)}}
    save_atomically({**weights, **nnssl, **more}, folder / "checkpoint_final.pth")


def changed(**training):
    return {**CONFIG, "training": {**CONFIG["training"], **training}}


def test_another_configuration_is_refused_with_the_ways_out(tmp_path):
    finish(tmp_path)
    with pytest.raises(RuntimeError) as caught:
        refuse_overwrite(tmp_path, changed(num_epochs=6), overwrite=False)
    difference = "training.num_epochs: finished run 5, now 6"
    for expected in (difference, "overwrite: true", "nnUNet_results", "-tr"):
        assert expected in str(caught.value)


def test_what_may_be_overwritten(tmp_path):
    refuse_overwrite(tmp_path, CONFIG, overwrite=False)
    finish(tmp_path)
    refuse_overwrite(tmp_path, CONFIG, overwrite=False)
    refuse_overwrite(tmp_path, changed(overwrite=True), overwrite=False)
    refuse_overwrite(tmp_path, changed(num_epochs=6), overwrite=True)
    (tmp_path / "checkpoint_final.pth").rename(tmp_path / "checkpoint_latest.pth")
    refuse_overwrite(tmp_path, changed(num_epochs=6), overwrite=False)


def test_whole_configurations_are_compared_by_their_sections(tmp_path):
    finish(tmp_path, {"name": "nnSSLOldTrainer", "sources": ["/a.yaml"], "sections": CONFIG})
    refuse_overwrite(tmp_path, CONFIG, overwrite=False)
    with pytest.raises(RuntimeError, match=r"training\.num_epochs: finished run 5, now 6"):
        refuse_overwrite(tmp_path, {"sections": changed(num_epochs=6)}, overwrite=False)


def test_foreign_and_broken_finished_runs_are_refused(tmp_path):
    finish(tmp_path, config=None)
    with pytest.raises(RuntimeError, match="not written by nnSSL"):
        refuse_overwrite(tmp_path, CONFIG, overwrite=False)
    (tmp_path / "checkpoint_final.pth").write_bytes(b"broken")
    with pytest.raises(RuntimeError, match="cannot be read"):
        refuse_overwrite(tmp_path, CONFIG, overwrite=False)


def test_resolved_config_is_readable_yaml(tmp_path):
    path = write_resolved_config(tmp_path / "new", CONFIG)
    assert path.name == "resolved_config.yaml"
    assert yaml.safe_load(path.read_text())["views"] == {"a": {"scale": [0.8, 1.2]}}


def test_resume_allows_only_what_may_change():
    assert compare_resume(CONFIG, CONFIG, set()) == []
    lines = compare_resume(CONFIG, changed(num_epochs=9), {"training.num_epochs"})
    assert lines == ["training.num_epochs changed from 5 to 9"]
    assert len(compare_resume(CONFIG, changed(num_epochs=9), {"training"})) == 1
    with pytest.raises(ValueError, match=r"training\.num_epochs: stored 5, today 9"):
        compare_resume(CONFIG, changed(num_epochs=9), {"training.num"})


def test_new_and_vanished_settings_are_differences():
    with pytest.raises(ValueError, match=r"labels\.patients: stored '\(not set\)', today 2"):
        compare_resume(CONFIG, {**CONFIG, "labels": {"patients": 2}}, set())
    with pytest.raises(ValueError, match=r"views\.a\.scale: stored .*, today '\(not set\)'"):
        compare_resume(CONFIG, {"training": CONFIG["training"]}, set())
