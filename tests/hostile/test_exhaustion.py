"""Small files that would need endless memory or time are refused at once."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.nnunet.checkpoint import save_atomically
from nnssl.nnunet.planned_network import build_planned_network
from tests.hostile import exhaust
from tests.hostile.payloads import nest, place, rewrite, save
from tests.tiny import DATASET_JSON, tiny_plans

SMALL = 300  # MB that the process may use
LARGE = 600  # MB that a payload would need


def make_payloads(folder: Path) -> Iterator[Path]:
    plans = tiny_plans()
    weights = build_planned_network(plans, "2d", DATASET_JSON).state_dict()
    own = {"kind": "pretrain", "plans": plans, "configuration": "2d", "history": {}}
    good = {"network_weights": weights, "nnssl": own}
    first = next(iter(weights))
    save_atomically(good, folder / "good.pth")
    yield deflate(folder / "good.pth", folder / "deflated.pth")
    wide = torch.zeros(1).expand(10**11)
    yield save(place(good, "network_weights", {**weights, first: wide}), folder / "stride_0.pth")
    for where in ("nnssl.plans.more", "nnssl.history", "nnssl.cases", "optimizer_state"):
        name = where.rpartition(".")[2]
        yield save(place(good, where, {"a": nest(12)}), folder / f"shared_{name}.pth")
    endless: list[Any] = []
    endless.append(endless)
    yield save({**good, "logging": {"a": endless}}, folder / "endless.pth")
    knobs = "nnssl.plans.configurations.2d.architecture.arch_kwargs"
    for knob, value in {
        "features_per_stage": [10**6] * 3,
        "n_conv_per_stage": [10**9] * 3,
        "kernel_sizes": [[10**5, 10**5]] * 3,
        "n_stages": 10**9,
    }.items():
        yield save(place(good, f"{knobs}.{knob}", value), folder / f"{knob}.pth")
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    yield write(folder / "aliases.yaml", "l0: &l0 [1]\n" + "\n".join(levels))
    merged = [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    yield write(folder / "merged.yaml", "m0: &m0 {a: 1}\n" + "\n".join(merged))
    yield write(folder / "deep.yaml", "a: " + "[" * 10**5 + "]" * 10**5)
    yield write(folder / "deep.json", "[" * 10**6 + "]" * 10**6)
    yield dump(folder / "shared.pkl", {"sitk_stuff": {"direction": nest(12)}})
    yield dump(folder / "array.pkl", Reconstructed())


class Reconstructed:
    """An array of 10 TB, as pickle would make it."""

    def __reduce__(self) -> Any:
        import numpy as np

        return np.zeros(0).__reduce__()[0], (np.ndarray, (10**13,), b"b")


def deflate(file: Path, target: Path) -> Path:
    """A checkpoint whose first tensor has grown by zeros, compressed."""
    rewrite(file, target, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(target, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        with archive.open(f"{root}/data/more", "w") as part:
            for _ in range(LARGE):
                part.write(bytes(2**20))
    return target


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def dump(file: Path, content: Any) -> Path:
    file.write_bytes(pickle.dumps(content))
    return file


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits the address space")
def test_every_payload_is_refused_in_little_memory_and_time(tmp_path: Path):
    files = list(make_payloads(tmp_path))
    assert max(file.stat().st_size for file in files) < 3 * 2**20
    command = [sys.executable, exhaust.__file__, str(SMALL), *map(str, files)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert [row["file"] for row in rows] == [file.name for file in files], process.stderr[-2000:]
    for row in rows:
        print(f"{row['file']:<24}{row['seconds']:8.2f} s{row['megabytes']:6} MB  {row['found']}")
    wrong = [row for row in rows if not row["found"].startswith("refused") or row["seconds"] > 5]
    assert not wrong
    assert all(row["file"] in row["found"] for row in rows)
