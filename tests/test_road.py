"""The whole road, through real commands in subprocesses: a user's first hour, on a CPU.

Draw, convert, plan, pre-train, kill, resume, fine-tune, predict without nnssl; and what a user sees
when a name or a file is wrong. The parts of the road are fixtures: each is walked once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from nnssl.common.locks import hold_with_process
from nnssl.nnunet import registration
from nnssl.nnunet.splits import read_splits

DATASET, NAME, PLANS = "27", "Dataset027_ACDC", "nnUNetPlansTiny"
PRETRAINER = "nnSSLContrastiveTrainer"
PRETRAINING = "num_epochs=4 num_iterations_per_epoch=8 num_val_iterations_per_epoch=1 save_every=1"
FINETUNING = "num_epochs=1 num_iterations_per_epoch=4 num_val_iterations_per_epoch=1"
MEASURED = {
    "probe_seconds",
    "images_per_second",
    "seconds_per_step",
    "seconds_waited",
    "epoch_seconds",
}
SCRIPTS = Path(__file__).parents[1] / "scripts"
SECONDS = 300  # for one command, on a busy machine

WITHOUT_NNSSL = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnssl":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
"""
SHORT_STOCK_TRAINING = """
import sys
import torch
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

file = sys.argv[sys.argv.index("-pretrained_weights") + 1]
start = nnUNetTrainer.on_train_start

def check_and_shorten(self):
    weights = torch.load(file, weights_only=True)["network_weights"]
    for key, value in self.network.state_dict().items():
        assert ".seg_layers." in key or torch.equal(value, weights[key]), key
    start(self)
    self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1

nnUNetTrainer.on_train_start = check_and_shorten
nnUNetTrainer.perform_actual_validation = lambda *_: None
run_training_entry()
"""


@dataclass(frozen=True)
class Road:
    """One folder with everything, and the environment in which commands run."""

    root: Path
    variables: dict[str, str]

    def popen(self, *command: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Starts one of the environment's commands; an empty variable is taken out."""
        program = str(Path(sys.executable).parent / command[0])
        environment = {k: v for k, v in {**self.variables, **variables}.items() if v}
        return subprocess.Popen(
            [program, *map(str, command[1:])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env=environment,
            cwd=self.root,
            start_new_session=True,
        )

    def fails(self, *command: str | Path, **variables: str) -> str:
        """What a command that must fail prints."""
        code, output = self._run(*command, **variables)
        assert code != 0, output
        return output

    def __call__(self, *command: str | Path, **variables: str) -> str:
        """What a command that must succeed prints."""
        code, output = self._run(*command, **variables)
        assert code == 0, f"{' '.join(map(str, command))}\n{output}"
        return output

    def _run(self, *command: str | Path, **variables: str) -> tuple[int, str]:
        process = self.popen(*command, **variables)
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output

    def train(self, trainer: str, *more: str | Path, **variables: str) -> str:
        return self(*training(trainer, *more), **variables)

    def fold(self, trainer: str, results: str = "results") -> Path:
        return self.root / results / NAME / f"{trainer}__{PLANS}__2d" / "fold_0"

    def without_nnssl(self) -> dict[str, str]:
        """Variables of an environment in which nnssl cannot be imported."""
        folder = self.root / "without_nnssl"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(WITHOUT_NNSSL)
        return {**self.before_pythonpath(folder), "nnUNet_extTrainer": ""}

    def before_pythonpath(self, folder: Path) -> dict[str, str]:
        inherited = filter(None, [self.variables.get("PYTHONPATH")])
        return {"PYTHONPATH": os.pathsep.join([str(folder), *inherited])}


def training(trainer: str, *more: str | Path) -> tuple[str | Path, ...]:
    stock = ("nnUNetv2_train", DATASET, "2d", "0", "-p", PLANS, "-device", "cpu")
    return (*stock, "-tr", trainer, *more)


def checkpoint(file: Path) -> dict[str, Any]:
    """Read as any machine can read it: without nnssl's or NumPy's classes."""
    return torch.load(file, weights_only=True)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def voxels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Iterator[Road]:
    """A data set of six drawn patients, planned small and preprocessed; trainers are registered."""
    root = tmp_path_factory.mktemp("road")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnssl_", "nnUNet_"))}
    own = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_WAIT_POLICY": "passive"}
    folders = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    road = Road(root, {**kept, **own, **folders})
    road("nnssl_phantom", root / "native", "--patients", "6", "--workers", "1")
    road("nnssl_convert", "ACDC", root / "native", "-d", DATASET, "--workers", "1")
    road("nnUNetv2_extract_fingerprint", "-d", DATASET, "-np", "1")
    road("nnUNetv2_plan_experiment", "-d", DATASET)
    sizes = ["--spacing", "4", "--patch", "32", "--batch", "4", "--features", "4", "8", "16"]
    road("nnssl_plan_small", "-d", DATASET, "-c", "2d", "--name", PLANS, *sizes)
    road("nnUNetv2_preprocess", "-d", DATASET, "-plans_name", PLANS, "-c", "2d", "-np", "1")
    if registration.supports_external():  # leaves the installed nnU-Net as it is
        road.variables["nnUNet_extTrainer"] = road("nnssl_register", "--path").strip()
        yield road
        return
    before = registration.find_state(registration.trainer_folder())
    road("nnssl_register")
    yield road
    if before == "absent":
        road("nnssl_register", "--undo")


@pytest.fixture(scope="module")
def pretrained(road) -> Path:
    """The final checkpoint of an uninterrupted pre-training."""
    road.train(PRETRAINER, nnssl_overrides=PRETRAINING)
    return road.fold(PRETRAINER) / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def finetuned(road, pretrained) -> Path:
    """The folder of a fine-tuning on one labelled patient; its log is `output.txt` there."""
    overrides = f"{FINETUNING} labels.patients=1"
    output = road.train("nnSSLFinetuneTrainer", nnssl_overrides=overrides)
    folder = road.fold("nnSSLFinetuneTrainer")
    (folder / "output.txt").write_text(output)
    return folder


@pytest.fixture(scope="module")
def scratch(road) -> Path:
    """The folder of its twin from random weights; its log is `output.txt` there."""
    output = road.train("nnSSLScratchTrainer", nnssl_overrides=f"{FINETUNING} labels.patients=1")
    folder = road.fold("nnSSLScratchTrainer")
    (folder / "output.txt").write_text(output)
    return folder


def test_the_folds_part_patients_and_lie_where_nnunet_reads_them(road):
    for fold in read_splits(road.root / "preprocessed" / NAME / "splits_final.json"):
        train, val = ({case.split("_")[0] for case in fold[part]} for part in ("train", "val"))
        assert train
        assert val
        assert not train & val


def test_pretraining_leaves_a_log_a_picture_and_a_finished_checkpoint(pretrained):
    own = checkpoint(pretrained)["nnssl"]
    assert own["finished"]
    assert own["step"] == 32
    assert own["versions"]["nnunetv2"] == registration.nnunet_version()
    assert own["config"]["sections"]["training"]["num_epochs"] == 4
    losses = own["history"]["train_loss"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    names = {path.name for path in pretrained.parent.iterdir()}
    assert {"progress.png", "resolved_config.yaml", "checkpoint_best.pth"} <= names
    assert not {"checkpoint_latest.pth", "validation"} & names
    assert not [name for name in names if "preflight" in name]
    probed = read_json(pretrained.parent / "probe.json")
    assert {"pretrained", "random"} <= set(probed["encoders"])
    assert 0 < probed["encoders"]["pretrained"]["dice"] <= 1


def test_a_killed_pretraining_resumes_and_ends_as_if_nothing_had_happened(road, pretrained):
    results = {"nnUNet_results": str(road.root / "killed"), "nnssl_overrides": PRETRAINING}
    folder = road.fold(PRETRAINER, "killed")
    process = road.popen(*training(PRETRAINER), **results, nnUNet_n_proc_DA="2")
    deadline = time.monotonic() + SECONDS
    while not (folder / "checkpoint_latest.pth").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert 0 < checkpoint(folder / "checkpoint_latest.pth")["nnssl"]["step"] < 32

    output = road.fails(*training(PRETRAINER), **results)
    assert "it is just this one" in output
    continues = f"-p {PLANS} -tr {PRETRAINER} -device cpu --c"
    assert f"Continue it with: nnUNetv2_train {NAME} 2d 0 {continues}" in output

    output = road.train(PRETRAINER, "--c", **{**results, "nnssl_overrides": ""})
    assert "override training.num_epochs = 4 (stored with the run)" in output
    expected, found = checkpoint(pretrained), checkpoint(folder / "checkpoint_final.pth")
    for key, value in expected["network_weights"].items():
        assert torch.equal(found["network_weights"][key], value), key
    for key, value in expected["nnssl"]["objective_state"].items():
        assert torch.equal(found["nnssl"]["objective_state"][key], value), key
    for key in set(expected["nnssl"]["history"]) - MEASURED:
        assert found["nnssl"]["history"][key] == expected["nnssl"]["history"][key], key


def test_finetuning_finds_the_weights_and_one_labelled_patient(finetuned, pretrained):
    output = (finetuned / "output.txt").read_text()
    assert f"Weights from {pretrained} (found as the finished pre-training run" in output
    labelled = read_json(finetuned / "labelled_cases.json")
    assert labelled["number_of_patients"] == 1
    assert labelled["number_of_volumes"] == 2
    assert "CONTAMINATED" not in output
    assert len(read_json(finetuned / "validation" / "summary.json")["metric_per_case"]) == 4


def test_a_folder_in_use_is_not_validated_in(road, finetuned):
    before = (finetuned / "validation" / "summary.json").stat().st_mtime_ns
    lock = hold_with_process(finetuned)
    output = road.fails(*training("nnSSLFinetuneTrainer", "--val"))
    assert f"in use: process {os.getpid()} on" in output
    assert (finetuned / "validation" / "summary.json").stat().st_mtime_ns == before
    del lock


def test_the_scratch_twin_shares_all_but_the_weights(scratch, finetuned):
    assert "Weights: all random" in (scratch / "output.txt").read_text()
    labelled = read_json(scratch / "labelled_cases.json")
    assert labelled["cases"] == read_json(finetuned / "labelled_cases.json")["cases"]
    own, other = (checkpoint(f / "checkpoint_final.pth")["nnssl"] for f in (scratch, finetuned))
    assert own["config"]["sections"]["training"] == other["config"]["sections"]["training"]
    assert own["weights"]["loaded"] == []
    assert any(key.startswith("encoder.") for key in other["weights"]["loaded"])


def test_the_quickstart_picks_cases_and_reports(road, scratch, finetuned):
    """The two programs that `scripts/quickstart.sh` calls between stock commands."""
    (road.root / "origin").write_text("synthetic\n")
    road("python", SCRIPTS / "quickstart_cases.py", road.root)
    images = sorted((road.root / "cases").iterdir())
    assert len({image.name.split("_")[0] for image in images}) == len(images) == 2
    for name, folder in (("scratch", scratch), ("pretrained", finetuned)):
        (road.root / f"predicted_{name}").symlink_to(folder / "validation")
    output = road("python", SCRIPTS / "quickstart_report.py", road.root)
    dice = [read_json(f / "validation" / "summary.json") for f in (scratch, finetuned)]
    mean = [f"{each['foreground_mean']['Dice']:.3f}" for each in dice]
    assert " ".join(mean) in " ".join(output.split())
    assert "labelled patients: 1" in output
    assert (road.root / "quickstart.png").stat().st_size > 10_000


def test_the_finetuned_model_predicts_where_nnssl_is_not_installed(road, finetuned):
    bare = road.without_nnssl()
    assert "No module named 'nnssl'" in road.fails("python", "-c", "import nnssl", **bare)
    case = min((finetuned / "validation").glob("*.nii.gz")).name
    source, target = road.root / "one_case", road.root / "predicted"
    source.mkdir()
    image = case.replace(".nii.gz", "_0000.nii.gz")
    (source / image).symlink_to(road.root / "raw" / NAME / "imagesTr" / image)
    command = (
        "nnUNetv2_predict",
        "-i",
        source,
        "-o",
        target,
        "-d",
        DATASET,
        "-p",
        PLANS,
        "-f",
        "0",
    )
    single = ("-c", "2d", "-npp", "1", "-nps", "1", "-device", "cpu")
    road(*command, *single, "-tr", "nnSSLFinetuneTrainer", **bare)
    assert np.array_equal(voxels(target / case), voxels(finetuned / "validation" / case))


def test_stock_training_takes_the_pretrained_weights_without_nnssl(road, pretrained):
    script = road.root / "short_stock_training.py"
    script.write_text(SHORT_STOCK_TRAINING)
    results = str(road.root / "stock")
    _, *arguments = training("nnUNetTrainer", "-pretrained_weights", pretrained)
    road("python", script, *arguments, **road.without_nnssl(), nnUNet_results=results)
    assert (road.fold("nnUNetTrainer", "stock") / "checkpoint_final.pth").is_file()


def test_an_unknown_name_lists_the_near_ones(road):
    output = road.fails(*training("nnSSLContrastTrainer"))
    assert "there is no trainer 'nnSSLContrastTrainer'" in output
    assert PRETRAINER in output


def test_a_broken_yaml_gives_its_own_error(road):
    folder = road.root / "configs"
    folder.mkdir()
    (folder / "nnSSLMineTrainer.yaml").write_text(f"extends: {PRETRAINER}\ntraining: {{\n")
    output = road.fails(*training("nnSSLMineTrainer"), nnssl_configs=str(folder))
    assert str(folder / "nnSSLMineTrainer.yaml") in output
    assert "Could not find requested nnunet trainer" not in output


def test_stock_trainers_outlive_a_broken_nnssl(road):
    package = road.root / "broken" / "nnssl"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('broken nnssl')\n")
    broken = road.before_pythonpath(package.parent)
    assert "broken nnssl" in road.fails(*training(PRETRAINER), **broken)
    output = road.fails(*training("nnUNetTrainer_5epochs", "--val"), **broken)
    assert "Cannot run validation because the training is not finished yet" in output
    assert "broken nnssl" not in output
