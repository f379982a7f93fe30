"""``nnssl_probe`` as a user meets it, on a tiny preprocessed dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch
from torch import nn

from nnssl.cli.probe import main
from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.plans import PLAIN, make_architecture

NAME, PLANS = "Dataset998_Balls", "nnUNetPlans"
PATIENTS = 5
COMMAND = ["998", "2d", "0", "-device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed dataset: one case per patient, fold 0 validates on the first."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / NAME).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for name, module in _modules_with_paths():
        monkeypatch.setattr(module, name, str(tmp_path / name.split("_")[1]))
    base = tmp_path / "preprocessed" / NAME
    cases = [f"p{number}" for number in range(PATIENTS)]
    origin = {c: {"patient": c, "dataset": "Balls", "orientation": "LPS"} for c in cases}
    content = {
        f"{PLANS}.json": plans(),
        "dataset.json": {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, "ball": 1},
            "numTraining": PATIENTS,
            "file_ending": ".nii.gz",
        },
        "splits_final.json": [{"train": cases[1:], "val": cases[:1]}],
        "nnssl/cases.json": {"cases": origin},
    }
    for file, values in content.items():
        (base / file).parent.mkdir(exist_ok=True)
        (base / file).write_text(json.dumps(values))
    (base / f"{PLANS}_2d").mkdir()
    for number, case in enumerate(cases):
        write_case(base / f"{PLANS}_2d", case, number)
    return base


def _modules_with_paths() -> Iterator[tuple[str, Any]]:
    """nnU-Net before 2.8 reads the variables when it is imported."""
    import sys

    import nnunetv2.utilities.dataset_name_id_conversion as _  # noqa: F401

    for name, module in list(sys.modules.items()):
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            if name.startswith("nnunetv2") and isinstance(getattr(module, variable, 0), str):
                yield variable, module


def plans() -> dict[str, Any]:
    architecture = make_architecture(PLAIN, [4, 6, 8], [[1, 1], [2, 2], [2, 2]], [1, 2, 1], [1, 1])
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {
            "2d": {"data_identifier": f"{PLANS}_2d", "architecture": architecture},
        },
    }


def write_case(folder: Path, case: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.indices((24, 28))
    radius = rng.uniform(5, 8)
    ball = np.broadcast_to((y - 12) ** 2 + (x - 14) ** 2 < radius**2, (6, 24, 28))
    image = (2 * ball + rng.normal(0, 0.7, ball.shape)).astype(np.float32)
    for array, name in ((image, case), (ball.astype(np.int16), f"{case}_seg")):
        blosc2.asarray(np.ascontiguousarray(array[None]), urlpath=str(folder / f"{name}.b2nd"))


@pytest.fixture
def checkpoint(tmp_path: Path, make_unet: Callable[..., nn.Module]) -> Callable[..., Path]:
    """`checkpoint(name, seed, blind)`: a file; a blind encoder sees nothing."""

    def write(name: str, seed: int = 0, blind: bool = False) -> Path:
        network = make_unet(2, seed=seed)
        if blind:
            with torch.no_grad():
                network.encoder.stages[0][0].convs[0].conv.weight.zero_()
        file = tmp_path / name
        save_atomically({"network_weights": network.state_dict()}, file)
        return file

    return write


def test_prints_a_table_and_writes_the_record(
    folder: Path, checkpoint: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    good, blind = checkpoint("good.pth"), checkpoint("blind.pth", blind=True)
    output = tmp_path / "probe.json"
    files = ["--weights", str(good), str(blind), "--reference", str(good)]
    main([*COMMAND, *files, "--draws", "2", "-o", str(output)])
    record = json.loads(output.read_text())
    found = {Path(name).name: entry for name, entry in record["encoders"].items()}
    assert list(found) == ["random", "good.pth", "blind.pth", "reference"]
    assert found["good.pth"]["dice"] > 0.6 > 0.4 > found["blind.pth"]["dice"]
    assert found["reference"]["dice"] == found["good.pth"]["dice"]
    assert record["cases"]["scored"] == ["p0"]
    with pytest.raises(SystemExit, match=r"probe\.json exists; give another name, or --overwrite"):
        main([*COMMAND, *files, "-o", str(output)])
    assert json.loads(output.read_text()) == record
    assert record["checkpoints"][str(good)]["contaminated"] is None  # a stock file does not tell
    printed = capsys.readouterr().out
    assert "position_error" in printed
    assert "do not choose by it" in printed


def test_choosing_reads_no_validation_case(
    folder: Path, checkpoint: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    """The validation files are replaced by garbage: the same choice, to the last digit."""
    files = [str(checkpoint("blind.pth", blind=True)), str(checkpoint("good.pth"))]
    records = []
    for number in range(2):
        output = tmp_path / f"{number}.json"
        choose = ["--choose", "--patients", "3", "--seed", "1", "-o", str(output)]
        main([*COMMAND, "--weights", *files, *choose])
        records.append(json.loads(output.read_text()))
        for file in folder.glob(f"{PLANS}_2d/p0*"):
            file.write_bytes(b"garbage")
    assert records[0] == records[1]
    assert records[0]["chosen"].endswith("good.pth")
    assert capsys.readouterr().out.count("good.pth\n") >= 2
    assert len(records[0]["labelled"]["patients"]) == 3
    assert records[0]["dice_per_case"][files[1]].keys() == set(records[0]["labelled"]["cases"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--choose", "--patients", "2"], "found 2 labelled patients, allowed from 3"),
        (["--patients", "7"], "probe_patients: found 7 .*allowed: 1 to 4"),
        (["-p", "Other"], "Other.json does not exist"),
    ],
)
def test_mistakes_end_with_one_message(
    folder: Path, checkpoint: Callable[..., Path], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        main([*COMMAND, "--weights", str(checkpoint("good.pth")), *arguments])


def test_other_places_are_refused(folder: Path, checkpoint: Callable[..., Path]) -> None:
    weights = ["--weights", str(checkpoint("good.pth")), "-device", "cpu"]
    with pytest.raises(SystemExit, match=r"configuration is '3d'; nnUNetPlans\.json has 2d"):
        main(["998", "3d", "0", *weights])
    with pytest.raises(SystemExit, match="fold 4"):
        main(["998", "2d", "4", *weights])
    with pytest.raises(SystemExit, match="dataset 777"):
        main(["777", "2d", "0", *weights])
    with pytest.raises(SystemExit, match=r"nowhere\.pth does not exist"):
        main([*COMMAND, "--weights", "nowhere.pth"])
    shutil.rmtree(folder / f"{PLANS}_2d")
    with pytest.raises(SystemExit, match="no preprocessed"):
        main([*COMMAND, *weights[:2]])
