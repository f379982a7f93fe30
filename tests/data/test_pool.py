"""A pool made of real small datasets: what nnU-Net reads of it, resumption, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnssl.cli.pool import main
from nnssl.data.case_table import find_anatomical_axis, parse_orientation, read_case_table
from nnssl.data.pool import build as pool_build
from nnssl.data.pool.build import PoolRequest, build, draft
from nnssl.data.pool.settings import MARK
from nnssl.leakage.pool_check import check_pool
from nnssl.nnunet.paths import Roots
from tests.tiny import SHAPE, SPACING, point_nnunet_to

TWO, PATIENTS = "Dataset998_Two", ("a", "b", "c")
POOL = "Dataset900_Pool"


@pytest.fixture(scope="module")
def two_files(tmp_path_factory) -> Path:
    """A CT and a T1 channel per patient; slices lie along the last array axis."""
    root = tmp_path_factory.mktemp("two")
    raw, preprocessed = root / "raw" / TWO, root / "preprocessed" / TWO
    cases = {f"case_{p}": p for p in PATIENTS}
    for number, case in enumerate(cases):
        ball = np.indices((20, 24, 6)).astype(float) - np.array([10, 12, 3]).reshape(3, 1, 1, 1)
        inside = (ball**2).sum(0) < 30 + 5 * number
        ct = np.where(inside, 40.0, -1024.0)
        _volume(ct, raw / "imagesTr" / f"{case}_0000.nii.gz")
        noise = np.random.default_rng(number).normal(0, 5, inside.shape)
        _volume(100.0 + 300 * inside + noise, raw / "imagesTr" / f"{case}_0001.nii.gz")
        _volume(inside.astype(float), raw / "labelsTr" / f"{case}.nii.gz")
    names = sorted(cases)
    splits = [{"train": [c for c in names if c != v], "val": [v]} for v in names]
    entries = {c: {"patient": p, "dataset": "Two", "orientation": "LPS"} for c, p in cases.items()}
    channels = {"0": "CT", "1": "T1"}
    labels = {"background": 0, "ball": 1}
    _json(
        raw / "dataset.json",
        {"channel_names": channels, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz"},
    )
    _json(preprocessed / "splits_final.json", splits)
    _json(preprocessed / "nnssl" / "cases.json", {"cases": entries, "version": 1})
    _fingerprint(preprocessed, (1.0, 1.0, 4.0), (20, 24, 6), len(cases))
    return root


@pytest.fixture(scope="module")
def pool_files(two_files, tiny_files) -> Path:
    """Tiny (999, MR, two folds), Two (998, CT and T1, three folds), and their pool (900)."""
    for name in ("raw", "preprocessed"):
        shutil.copytree(tiny_files / name, two_files / name, dirs_exist_ok=True)
    _fingerprint(two_files / "preprocessed" / "Dataset999_Tiny", SPACING, SHAPE, 10)
    made(Roots(two_files / "raw", two_files / "preprocessed"))
    return two_files


@pytest.fixture
def places(pool_files, tmp_path, monkeypatch) -> Roots:
    """A copy of all three, with the environment of nnU-Net pointing to it."""
    for name in ("raw", "preprocessed"):
        shutil.copytree(pool_files / name, tmp_path / name)
        point_nnunet_to(f"nnUNet_{name}", tmp_path / name, monkeypatch)
    point_nnunet_to("nnUNet_results", tmp_path / "results", monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "0")
    return Roots(tmp_path / "raw", tmp_path / "preprocessed")


@pytest.fixture
def no_pool(places) -> Roots:
    """The two datasets without their pool."""
    for root in (places.raw, places.preprocessed):
        shutil.rmtree(root / POOL)
    return places


def _volume(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((4.0, 1.0, 1.0))
    SimpleITK.WriteImage(image, str(path))


def _json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _fingerprint(folder: Path, spacing, shape, number: int) -> None:
    content = {
        "spacings": [list(spacing)] * number,
        "shapes_after_crop": [list(shape)] * number,
        "median_relative_size_after_cropping": 1.0,
    }
    _json(folder / "dataset_fingerprint.json", content)


def request(**changes) -> PoolRequest:
    defaults = {"number": 900, "name": "Pool", "members": (999, 998), "plans": "nnUNetPlans"}
    return PoolRequest(**{**defaults, "configuration": "2d", "plans_of": 999, **changes})


def made(places: Roots, **changes) -> Path:
    """Folder of the preprocessed pool."""
    build(draft(request(**changes), places), workers=1)
    return places.preprocessed / POOL


def data_of(folder: Path, case: str):
    data, mask, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
    return np.asarray(data[:])[0], np.asarray(mask[:])[0], properties


def test_each_case_has_its_own_normalisation_spacing_and_axes(no_pool):
    folder = made(no_pool, members=(998,), spacing="own") / "nnUNetPlans_2d"
    ct, mask, _ = data_of(folder, "998_case_a_c0")
    assert ct.shape == (6, 20, 24)  # slices first
    assert np.unique(ct).tolist() == pytest.approx([-2.0, 0.08])  # -1000 and 40 HU over 500
    assert np.array_equal(mask == 1, ct > 0)
    t1, _, _ = data_of(folder, "998_case_a_c1")
    assert (t1.mean(), t1.std()) == pytest.approx((0, 1), abs=1e-4)


def test_the_target_spacing_resamples_in_plane_only(places):
    folder = places.preprocessed / POOL / "nnUNetPlans_2d"
    assert data_of(folder, "998_case_b_c1")[0].shape == (6, 13, 16)  # 1.5 mm
    assert data_of(folder, "999_p0_f0")[0].shape == SHAPE
    records = json.loads((places.raw / POOL / "conversion.json").read_text())
    case = records["configurations"]["nnUNetPlans_2d"]["cases"]["998_case_b_c1"]
    assert (case["spacing"], case["normalization"]) == ([1.5, 1.5], "ZScoreNormalization")
    assert (case["source"], len(case["sha256"])) == ("Dataset998_Two/case_b", 64)


def test_position_follows_the_head_in_every_member(places):
    folder = places.preprocessed / POOL
    cases = json.loads((folder / "nnssl" / "cases.json").read_text())["cases"]
    table = read_case_table(folder / "nnUNetPlans_2d", cases, [0, 1, 2], "head_feet")
    axes = {case.identifier[:3]: (case.axis, case.sign) for case in table}
    # Two is stored as (x, z, y): the head lies along axis 1
    assert axes == {"998": (1, 1), "999": (0, 1)}
    assert find_anatomical_axis(parse_orientation("PSL"), [0, 1, 2], "head_feet") == (1, 1)


def test_stock_nnunet_reads_the_pool(places):
    folder = places.preprocessed / POOL
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    description = json.loads((folder / "dataset.json").read_text())
    files = get_filenames_of_train_images_and_targets(str(places.raw / POOL))
    assert len(files) == 16
    assert all(Path(f).is_file() for e in files.values() for f in (*e["images"], e["label"]))
    import torch

    plans["continue_training"] = False
    trainer = nnUNetTrainer(plans, "2d", 1, description, torch.device("cpu"))
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    batch = next(loaders[0])
    assert tuple(batch["data"].shape) == (4, 1, 32, 32)
    assert trainer.network(batch["data"])[0].shape[1] == 2
    assert set(trainer.do_split()[1]) == {
        "998_case_b_c0",
        "998_case_b_c1",
        "999_p1_f0",
        "999_p1_f1",
    }


def test_no_label_is_read(no_pool):
    for file in no_pool.raw.glob("*/labelsTr/*"):
        file.write_bytes(b"no volume")
    assert (made(no_pool, members=(998,)) / "nnUNetPlans.json").exists()


def test_a_second_run_does_what_is_missing(places):
    folder = places.preprocessed / POOL / "nnUNetPlans_2d"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    (folder / "999_p0_f0.pkl").unlink()
    (places.raw / "Dataset998_Two" / "imagesTr" / "case_a_0001.nii.gz").touch()
    made(places)
    after = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    changed = {name.split(".")[0] for name in after if after[name] != before[name]}
    assert after.keys() == before.keys()
    assert changed == {
        "999_p0_f0",
        "999_p0_f0_seg",
        "998_case_a_c1",
        "998_case_a_c1_seg",
    }


def test_an_interrupted_run_cannot_be_trained_and_goes_on(no_pool, monkeypatch):
    done = []

    def stops(task, **rest):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task)
        pool_preprocess(task, **rest)

    pool_preprocess = pool_build.preprocess
    monkeypatch.setattr(pool_build, "preprocess", stops)
    with pytest.raises(KeyboardInterrupt):
        made(no_pool, members=(998,))
    folder = no_pool.preprocessed / POOL
    assert not (folder / "nnUNetPlans.json").exists()
    monkeypatch.setattr(
        pool_build, "preprocess", lambda task, **rest: pool_preprocess(task, **rest)
    )
    made(no_pool, members=(998,))
    assert len(list((folder / "nnUNetPlans_2d").glob("*.pkl"))) == 6
    assert check_pool(no_pool, 900) == []


def test_another_pool_is_not_overwritten(places):
    with pytest.raises(ValueError, match="other members, images or folds"):
        made(places, members=(999,))
    with pytest.raises(ValueError, match="made with other settings"):
        made(places, spacing="own")


def test_a_preprocessed_dataset_that_nobody_explains_is_not_overwritten(no_pool):
    file = no_pool.preprocessed / POOL / "dataset.json"
    _json(file, {"name": "mine"})
    with pytest.raises(ValueError, match=r"exists already, and no .* says what it was made from"):
        made(no_pool, members=(998,))
    assert json.loads(file.read_text()) == {"name": "mine"}


def test_a_bad_image_is_named(no_pool):
    _volume(np.ones((20, 24, 6)), no_pool.raw / TWO / "imagesTr" / "case_c_0001.nii.gz")
    with pytest.raises(ValueError, match=r"998_case_c_c1 \(.*case_c_0001.nii.gz\): is constant"):
        made(no_pool, members=(998,))


def test_check_sees_changed_folds_files_and_images(places):
    folder = places.preprocessed / POOL
    assert check_pool(places, 900) == []
    (folder / "nnUNetPlans_2d" / "999_p0_f0.b2nd").unlink()
    (places.raw / TWO / "imagesTr" / "case_a_0000.nii.gz").touch()
    file = places.preprocessed / TWO / "splits_final.json"
    _json(file, json.loads(file.read_text())[:2])
    found = "\n".join(check_pool(places, 900))
    assert "files of 999_p0_f0 are not those" in found
    assert "case_a_0000.nii.gz has changed" in found
    assert "folds of Dataset998_Two have changed" in found


def test_check_sees_folds_that_are_not_those_of_the_members(places):
    file = places.preprocessed / POOL / "splits_final.json"
    before = json.loads(file.read_text())
    _json(file, [{**before[0], "val": before[0]["val"][:1]}, *before[1:]])
    (found,) = check_pool(places, 900)
    assert "is not the union of the members' folds" in found
    file.unlink()
    assert "is not the union of the members' folds" in "".join(check_pool(places, 900))


def test_nnunets_planner_plans_the_mix(no_pool, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # the planner gives torch this many threads
    folder = made(no_pool, members=(998,), plans_of=None, plans="Mixed")
    plans = json.loads((folder / "Mixed.json").read_text())
    configuration = plans["configurations"]["2d"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    assert configuration["spacing"] == [1.0, 1.0]
    assert plans[MARK]["members"] == {TWO: ["Two"]}


def test_the_command(no_pool, capsys):
    options = "900 --from 998 --plans-of 999 -np 1 --spacing isotropic"
    main([*options.split(), "--dry-run"])
    assert "6 cases; nothing was written" in capsys.readouterr().out
    assert not (no_pool.raw / POOL).exists()
    main(options.split())
    assert "nnUNetv2_train 900 2d 0 -p nnUNetPlans" in capsys.readouterr().out
    main(["900", "--check"])
    assert "nothing is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("900", "needs --from"),
        ("900 --from 998 997 --plans-of 999", "dataset 997: .* found none"),
        ("900 --from 998 --plans-of 998", "nnUNetPlans.json does not exist; run first"),
        (
            "900 --from 998 --plans-of 999 -c 3d",
            "configuration is '3d'; nnUNetPlans.json has 2d, 3d_fullres",
        ),
        ("998 --from 999 --plans-of 999", "id 998 is taken|other members"),
        ("998 --check", "is not a pool"),
    ],
)
def test_mistakes_end_with_one_message(no_pool, options, message):
    with pytest.raises(SystemExit, match=message):
        main(options.split())
    assert not (no_pool.raw / POOL).exists()


def test_a_member_without_fingerprint_is_refused(no_pool):
    (no_pool.preprocessed / TWO / "dataset_fingerprint.json").unlink()
    with pytest.raises(ValueError, match="nnUNetv2_extract_fingerprint -d 998"):
        made(no_pool)


def test_the_same_images_in_two_members_stay_on_one_side(no_pool, capsys):
    """997 holds images of p0 and p2 under other names, and trains on x0 where p0 validates."""
    copy, tiny = "Dataset997_Copy", "Dataset999_Tiny"
    raw, preprocessed = no_pool.raw / copy, no_pool.preprocessed / copy
    for case, source in {"x0": "p0_f0", "x2": "p2_f0"}.items():
        for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            (raw / folder).mkdir(parents=True, exist_ok=True)
            original = no_pool.raw / tiny / folder / f"{source}{ending}"
            shutil.copy(original, raw / folder / f"{case}{ending}")
    shutil.copy(no_pool.raw / tiny / "dataset.json", raw)
    split = [{"train": ["x0"], "val": ["x2"]}, {"train": ["x0", "x2"], "val": []}]
    _json(preprocessed / "splits_final.json", split)
    _fingerprint(preprocessed, SPACING, SHAPE, 2)
    main(["900", "--from", "999", "997", "--plans-of", "999", "-np", "1"])
    told = capsys.readouterr().err
    assert "fold 0 leaves out" in told
    splits = json.loads((no_pool.preprocessed / POOL / "splits_final.json").read_text())
    assert {"997_x0", "997_x2", "999_p0_f0", "999_p2_f0"} <= set(splits[0]["val"])
    assert "997_x0" in splits[1]["train"]
    main(["900", "--check"])
    assert "nothing is wrong" in capsys.readouterr().out
