"""Checkpoints of others: nothing runs or is written elsewhere, and refusals name the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnssl.nnunet.checkpoint import read_checkpoint
from tests.hostile import payloads
from tests.hostile.doors import DOORS, Harness

RESUME = ("resume pre-training", "resume fine-tuning")
OF_PRETRAINING = tuple(door for door in DOORS if door != "resume fine-tuning")


def test_the_good_files_are_accepted(harness, pretrained, finetuned):
    """Else the other tests show nothing."""
    for door in OF_PRETRAINING:
        assert harness.try_one("nothing", pretrained, door) == "accepted", harness.bad
    assert harness.try_one("nothing", finetuned, "resume fine-tuning") == "accepted", harness.bad


def test_no_object_runs_at_any_door(harness: Harness, pretrained, guarded, tmp_path):
    good = torch.load(pretrained, weights_only=True)
    file = tmp_path / "try" / "hostile.pth"
    file.parent.mkdir()
    for name, runner in payloads.make_runners(guarded):
        for where in ("network_weights", "nnssl.plans", "more"):
            content = payloads.place(good, where, {"a": runner})
            assert harness.try_one(name, payloads.save(content, file), "read", True), name
        file.write_bytes(payloads.pickle_plainly(content))
        harness.try_one(f"{name}, former format", file, "read", True)
    for door in DOORS:
        if door != "nnssl_runs":  # lists what is broken
            harness.try_one(name, file, door, True)
    harness.try_one(name, file, "nnssl_runs")
    assert not harness.bad, harness.report()


def test_plans_in_a_checkpoint_build_and_name_nothing_else(
    harness: Harness, pretrained, guarded, tmp_path
):
    good = torch.load(pretrained, weights_only=True)
    (tmp_path / "try").mkdir()
    doors = ("nnssl_plan_like", "nnssl_cluster")
    for name, content in payloads.make_plans(good, guarded):
        file = payloads.save(content, tmp_path / "try" / "plans.pth")
        for door in doors:
            harness.try_one(name, file, door, must_refuse="elsewhere" not in name)
    assert not harness.bad, harness.report()


def test_weights_that_no_training_gives_are_refused(harness: Harness, pretrained, tmp_path):
    good = torch.load(pretrained, weights_only=True)
    for name, content in payloads.make_weights(good):
        file = payloads.save(content, tmp_path / "weights.pth")
        finite = name in ("nan", "infinity", "1e38")
        for door in ("fine-tune", "initial weights", *(() if finite else ("resume pre-training",))):
            harness.try_one(name, file, door, must_refuse=True)
    assert not harness.bad, harness.report()


def test_damage_is_found_by_its_checksum(harness: Harness, pretrained, tmp_path):
    whole, damaged = read_checkpoint(pretrained), tmp_path / "damaged.pth"
    for file in payloads.cut(pretrained, damaged, 10):
        harness.try_one("cut", file, "read", must_refuse=True)
    for file in payloads.flip_bits(pretrained, damaged, 200):
        if harness.try_one("flipped", file, "read") == "accepted":  # a bit that nobody reads
            assert is_same(read_checkpoint(file), whole)
    for old in (True, False):
        options = {} if old else {"compression": 8}
        file = payloads.rewrite(pretrained, damaged, **options)
        assert harness.try_one("written anew", file, "read") == ("accepted" if old else "refused")
    assert not harness.bad, harness.report()
    assert harness.verdicts["refused"] > 170


def is_same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or a != a


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "doors"),
    [
        ("pretrained", ("resume pre-training", "fine-tune", "nnssl_runs")),
        ("finetuned", ("resume fine-tuning", "fine-tune")),
    ],
)
def test_wrong_types_are_named_at_every_door(harness: Harness, request, kind, doors, tmp_path):
    """Every entry of the first three levels is replaced by values of other types."""
    good = torch.load(request.getfixturevalue(kind), weights_only=True)
    file = Path(tmp_path / "typed.pth")
    for where in payloads.find_places(good):
        for value in payloads.WRONG:
            payloads.save(payloads.place(good, where, value), file)
            name = f"{where} = {value!r}"
            if harness.try_one(name, file, "read") != "refused":
                harness.try_all(name, file, doors)
    print(harness.report())
    assert not harness.bad, harness.report()
