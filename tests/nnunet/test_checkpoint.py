"""Checkpoints open everywhere, run no code, and are never half-written."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time

import numpy as np
import pytest
import torch

from nnssl.nnunet.checkpoint import make_plain, read_checkpoint, save_atomically


def checkpoint(**more):
    return {"network_weights": {"a": torch.arange(3.0)}, **more}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ((1, (2, 3)), [1, [2, 3]]),
        ({"b", "a"}, ["a", "b"]),
        (Path("x") / "y", "x/y"),
        (torch.device("cuda", 1), "cuda:1"),
        (OrderedDict(a=np.float64(1)), {"a": 1.0}),
        ({np.int64(1): None}, {1: None}),
        (np.array([Path("p"), None], dtype=object), ["p", None]),
    ],
)
def test_plain_gives_python_values(value, expected):
    result = make_plain(value)
    assert result == expected
    assert type(result) is type(expected)


def test_plain_gives_tensors_without_gradient():
    result = make_plain({"w": torch.nn.Parameter(torch.ones(2)), "n": np.arange(3)})
    assert type(result["w"]) is torch.Tensor
    assert not result["w"].requires_grad
    assert torch.equal(result["n"], torch.arange(3))


def test_plain_names_the_place_of_a_foreign_object():
    with pytest.raises(ValueError, match=r"checkpoint\['a'\]\[1\] is a object"):
        make_plain({"a": [1, object()]})


def test_aliased_weights_are_stored_once(tmp_path):
    weight = torch.zeros(10_000)
    save_atomically(checkpoint(x=weight, alias=weight.detach()), tmp_path / "c.pth")
    assert (tmp_path / "c.pth").stat().st_size < 60_000
    read = read_checkpoint(tmp_path / "c.pth")
    assert read["x"].data_ptr() == read["alias"].data_ptr()


def test_what_is_written_opens_with_plain_weights_only(tmp_path):
    save_atomically(checkpoint(log=[np.float64(1.5)]), tmp_path / "c.pth")
    read = torch.load(tmp_path / "c.pth", weights_only=True)
    assert read["log"] == [1.5]
    assert list(tmp_path.iterdir()) == [tmp_path / "c.pth"]


def test_two_writers_of_one_file_leave_the_whole_file_of_either(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"

    def save(writer):
        for _ in range(30):
            save_atomically(checkpoint(x=torch.full((50_000,), writer), owner=writer), path)

    save_atomically(checkpoint(x=torch.zeros(1), owner=0), path)
    with ThreadPoolExecutor(2) as writers:
        saving = [writers.submit(save, writer) for writer in (1, 2)]
        seen = set()
        while not all(future.done() for future in saving):
            read = read_checkpoint(path)
            assert read["x"].unique().tolist() == [read["owner"]]
            seen.add(read["owner"])
        for future in saving:
            future.result()
    assert seen & {1, 2}
    assert list(tmp_path.iterdir()) == [path]


def test_only_old_parts_of_the_same_file_are_removed(tmp_path):
    unique = "0123456789abcdef" * 2
    old = [".part_c.pth", f".part_{unique}_c.pth"]
    others = [".part_x_c.pth", f".part_{unique}_x_c.pth", ".part_c.pth.json", "c.pth.part_c.pth"]
    young = f".part_{unique[::-1]}_c.pth"
    for name in (*old, *others, young):
        (tmp_path / name).write_bytes(b"half")
        age = 60 if name == young else 3700
        os.utime(tmp_path / name, (time() - age,) * 2)
    save_atomically(checkpoint(), tmp_path / "c.pth")
    assert {file.name for file in tmp_path.iterdir()} == {*others, young, "c.pth"}


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c.pth"
    save_atomically(checkpoint(epoch=1), path)

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"c\.pth could not be written.*No space left"):
        save_atomically(checkpoint(epoch=2), path)
    assert read_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_stock_checkpoints_with_numpy_scalars_are_read(tmp_path):
    log = {"losses": [np.float32(0.5), np.float64(2)], "best": np.float64(0.1), "n": np.int64(2)}
    stock = checkpoint(logging=log, init_args={"device": torch.device("cpu")})
    torch.save(stock, tmp_path / "c.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "c.pth", weights_only=True)
    assert read_checkpoint(tmp_path / "c.pth")["logging"] == log


def test_checkpoints_written_under_the_other_numpy_are_read(tmp_path):
    torch.save(checkpoint(best=np.float64(0.25)), tmp_path / "c.pth", pickle_protocol=2)
    names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    here = next(name for name in names if name in (tmp_path / "c.pth").read_bytes())
    other = names[1 - names.index(here)]
    renamed = rewrite_pickle(tmp_path / "c.pth", tmp_path / "other.pth", here, other)
    assert read_checkpoint(renamed)["best"] == 0.25


def rewrite_pickle(source, target, old, new):
    import zipfile

    with zipfile.ZipFile(source) as a, zipfile.ZipFile(target, "w") as b:
        for item in a.infolist():
            b.writestr(item.filename, a.read(item).replace(old, new))
    return target


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_malicious_file_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    torch.save(checkpoint(evil=Malicious(str(marker))), tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth cannot be read"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"PK\x03\x04broken"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "x.pth")


def test_truncated_checkpoint(tmp_path):
    save_atomically(checkpoint(big=torch.zeros(1000)), tmp_path / "c.pth")
    whole = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut off"):
        read_checkpoint(tmp_path / "c.pth")


def test_without_network_weights_and_missing(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="holds no 'network_weights'"):
        read_checkpoint(tmp_path / "c.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_checkpoint(tmp_path / "d.pth")
