"""What is given away opens anywhere, says where it is from, and names no patient unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from networks import checkpoint, configuration, dataset
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from safetensors import safe_open

from nnssl.cli.export import main as export
from nnssl.common.files import hash_file
from nnssl.finetuning.names import name_once
from nnssl.finetuning.weights import asked_keys, fit
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.hub import fetch
from nnssl.nnunet.paths import FINAL
from nnssl.nnunet.weight_files import ADAPTATION_PLAN, READ_AS, as_source, read_weights

PATIENT = "patient_Miller"
HOME = "/home/someone/secret"


@pytest.fixture
def run(tmp_path):
    """A finished pre-training of a residual 3D network that knows a patient and a folder."""
    entry = configuration((16, 16, 16), (1, 1, 1), residual=True)
    content = checkpoint(entry, "3d_fullres")
    content["init_args"] = {"dataset_json": {**dataset(), "dataset": {PATIENT: HOME}}}
    content["nnssl"] |= {
        "objective": "mae",
        "fold": 0,
        "dataset": "Dataset900_Pool",
        "epoch": 7,
        "cases": {"train": [PATIENT]},
        "ancestors": [{"cases": {"train": [PATIENT]}}],
        "identity": {"cases": {"train": [PATIENT]}},
        "about": {"bibtex": "@article{x}"},
        "config": {
            "name": "nnSSLMAETrainer", "kind": "pretrain", "about": {},
            "sections": {"training": {"initial_weights": f"{HOME}/a.pth"}},
            "sources": [f"{HOME}/b.yaml"],
        },
    }  # fmt: skip
    file = tmp_path / "run" / "checkpoint_final.pth"
    save_atomically(content, file)
    return file


def test_the_folder_holds_all_and_names_nobody(run, tmp_path):
    export([str(run.parent), "--to", str(tmp_path / "out"), "--licence", "cc-by-4.0"])
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert files == {
        "model.safetensors", "plans.json", "dataset.json", "resolved_config.yaml", "README.md",
        "manifest.json", "checkpoint_final.pth", "adaptation_plan.json", "config.json",
    }  # fmt: skip
    hashes = json.loads((tmp_path / "out" / "manifest.json").read_text())["sha256"]
    for name, expected in hashes.items():
        assert hash_file(tmp_path / "out" / name) == expected
        content = (tmp_path / "out" / name).read_bytes()
        assert PATIENT.encode() not in content
        assert HOME.encode() not in content
    card = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "cc-by-4.0"
    for word in ("mae", "Dataset900_Pool", "| epochs | 7 |", "@article{x}", "not named"):
        assert word in card
    with pytest.raises(SystemExit, match="holds files already"):
        export([str(run), "--to", str(tmp_path / "out")])


def test_both_files_hold_the_weights_and_what_was_trained(run, tmp_path):
    export([str(run), "--to", str(tmp_path / "out"), "--with-cases"])
    whole = read_weights(run)
    for name in ("model.safetensors", "checkpoint_final.pth"):
        read = read_weights(tmp_path / "out" / name)
        assert read["nnssl"]["objective"] == "mae"
        assert read["nnssl"]["cases"]["train"] == [PATIENT]
        once, expected = name_once(read["network_weights"]), name_once(whole["network_weights"])
        assert once.keys() == expected.keys()
        assert all(torch.equal(once[key], expected[key]) for key in once)
        assert as_source(read).channels == as_source(whole).channels
    assert read_weights(tmp_path / "out" / "model.safetensors")[READ_AS]["format"].startswith("nn")
    plan = torch.load(tmp_path / "out" / "checkpoint_final.pth")[ADAPTATION_PLAN]
    assert plan == json.loads((tmp_path / "out" / "adaptation_plan.json").read_text())
    assert plan["key_to_encoder"] == "encoder.stages"
    assert plan["pretrain_num_input_channels"] == 1
    for name in plan["keys_to_in_proj"]:
        assert f"{name}.weight" in whole["network_weights"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert len(file.keys()) == len(expected)


def test_the_checkpoint_of_a_segmentation_model_lies_where_nnunet_predicts_from(run, tmp_path):
    content = torch.load(run)
    content["nnssl"]["kind"] = "finetune"
    save_atomically(content, run)
    export([str(run), "--to", str(tmp_path / "out")])
    assert (tmp_path / "out" / "fold_0" / FINAL).is_file()
    assert not (tmp_path / "out" / FINAL).exists()
    assert "segmentation model" in (tmp_path / "out" / "README.md").read_text()


def test_nnunet_builds_and_fills_the_network_of_the_adaptation_plan(run, tmp_path):
    """As nnU-Net's master reads it: the first configuration, class by path, strict parts."""
    content = torch.load(run)
    entries = content["nnssl"]["plans"]["configurations"]
    child = {"inherits_from": "3d_fullres", "batch_size": 9}
    flat = configuration((32, 32), (1, 1))
    content["nnssl"]["plans"]["configurations"] = {"2d": flat, **entries, "3d_small": child}
    content["nnssl"]["configuration"] = "3d_small"
    save_atomically(content, run)
    export([str(run), "--to", str(tmp_path / "out")])
    written = torch.load(tmp_path / "out" / FINAL, weights_only=True)
    plan, weights = written[ADAPTATION_PLAN], written["network_weights"]
    ((name, entry),) = plan["pretrain_plan"]["configurations"].items()
    assert (name, entry["spacing"], entry["patch_size"]) == ("3d_small", [1, 1, 1], [16, 16, 16])
    assert plan["recommended_downstream_patchsize"] == [16, 16, 16]
    architecture = plan["architecture_plans"]
    network = get_network_from_plans(
        architecture["arch_class_name"],
        architecture["arch_kwargs"],
        architecture["arch_kwargs_requiring_import"],
        plan["pretrain_num_input_channels"],
        3,
        allow_init=True,
        deep_supervision=False,
    )
    for key in (plan["key_to_encoder"], plan["key_to_stem"]):
        part = {k[len(key) + 1 :]: v for k, v in weights.items() if k.startswith(f"{key}.")}
        network.get_submodule(key).load_state_dict(part)
    assert plan["key_to_lpe"] is None
    again = read_weights(tmp_path / "out" / FINAL)
    found = fit(as_source(again), network, asked_keys(network, "trained"))
    assert found.share == 1.0


class Hub(BaseHTTPRequestHandler):
    """Serves files of one repository as a model hub does."""

    def __init__(self, *arguments, folder: Path) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self, body: bool = False) -> None:
        file = self.folder / self.path.rpartition("/resolve/main/")[2].partition("?")[0]
        found = "/resolve/main/" in self.path and file.is_file()
        content = file.read_bytes() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{hash_file(file)}"' if found else '"0"')
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_GET(self) -> None:
        self.do_HEAD(body=True)

    def log_message(self, *_: object) -> None:
        pass


def test_weights_come_from_a_hub_and_stay_in_its_cache(run, tmp_path):
    pytest.importorskip("huggingface_hub")
    export([str(run), "--to", str(tmp_path / "out"), "--licence", "mit"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder=tmp_path / "out"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    variables |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}
    variables |= {"HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5"}

    def ask(source: str) -> str:
        code = f"from nnssl.nnunet.hub import fetch; print('got', fetch({source!r}))"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    told = ask("hf://owner/name")
    file = Path(told.partition("got ")[2].strip())
    assert file.read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes(), told
    assert "name a file" in ask("hf://owner/name/other.bin")
    stock = Path(ask("hf://owner/name/checkpoint_final.pth").partition("got ")[2].strip())
    plan = (tmp_path / "out" / "adaptation_plan.json").read_text()
    assert stock.with_name("adaptation_plan.json").read_text() == plan
    server.shutdown()
    server.server_close()
    assert str(file) in ask("hf://owner/name")
    assert "cannot be reached" in ask("hf://owner/another")


def test_names_of_a_hub_are_checked():
    for wrong in ("hf://name", "hf://", "hf://a b/c"):
        with pytest.raises(ValueError, match="allowed: hf://owner/name"):
            fetch(wrong)
