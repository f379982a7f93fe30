"""Images of imagesTs among what weights have seen: by content, file and name, as for validation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.common.files import read_json, write_json
from nnssl.data.copies import make_signatures
from nnssl.data.thumbnails import make_thumbnail
from nnssl.data.unlabelled.job import PreprocessingPlan
from nnssl.leakage.ancestry import trace_ancestry
from nnssl.leakage.check import Evaluation
from nnssl.leakage.policy import SourceJudgement, judge
from nnssl.modules.unet import plain_state_dict
from nnssl.nnunet.checkpoint import read_checkpoint, save_atomically
from nnssl.nnunet.images import open_image
from nnssl.training.finetuner import nnSSLFinetuner

SHORT = """
kind: finetune
training: {num_epochs: 1, num_iterations_per_epoch: 1, num_val_iterations_per_epoch: 1}
"""


@pytest.fixture
def tested(tiny_dataset: Any) -> Any:
    """The tiny dataset, of which p4 becomes the only patient of imagesTs, under the name t4."""
    images, file = tiny_dataset.raw / "imagesTs", tiny_dataset.preprocessed / "nnssl" / "cases.json"
    images.mkdir()
    content = read_json(file)
    for k in (0, 1):
        shutil.copy(tiny_dataset.raw / "imagesTr" / f"p4_f{k}_0000.nii.gz", images)
        (images / f"p4_f{k}_0000.nii.gz").rename(images / f"t4_f{k}_0000.nii.gz")
        entry = {"patient": "t4", "dataset": "Tiny", "part": "Ts", "sha256": f"hash of t4_f{k}"}
        content["cases"][f"t4_f{k}"] = entry
    write_json(file, content)
    return tiny_dataset


@pytest.fixture
def source(tested: Any) -> Callable[..., dict[str, Any]]:
    """What another dataset's checkpoint says that has seen one image, here called `other`."""

    def make(image: np.ndarray, patient: str = "s", sha256: str | None = None) -> dict[str, Any]:
        records = {"patient": [patient], "dataset": ["Other"], "sha256": [sha256]}
        signatures = make_signatures(make_thumbnail(image)[None])
        return {
            "kind": "pretrain",
            "dataset": "Dataset500_Other",
            "fold": 0,
            "ancestors": [],
            "cases": {"train": ["other"], "records": records, "signatures": signatures},
        }

    return make


def image_of(tested: Any, case: str) -> np.ndarray:
    image = open_image(tested.preprocessed / "nnUNetPlans_2d" / f"{case}.b2nd")[:]
    return 3 * np.asarray(image)[:, :, ::-1] + 7  # mirrored, on another scale


def judge_source(tested: Any, own: dict[str, Any]) -> SourceJudgement:
    plan = PreprocessingPlan(tested.plans, "2d", tested.dataset_json)
    folder = tested.preprocessed / "nnUNetPlans_2d"
    evaluation = Evaluation(tested.preprocessed, 0, ["p0_f0", "p0_f1"], folder, plan)
    return judge(trace_ancestry({"nnssl": own}), evaluation)


NOISE = np.random.default_rng(0).normal(size=(1, 8, 24, 24))


def test_a_copy_of_a_test_image_is_refused_and_another_image_is_not(tested, source):
    assert judge_source(tested, source(NOISE)).contaminated is False
    found = judge_source(tested, source(image_of(tested, "p4_f1")))
    (reason,) = found.reasons
    assert "near-duplicates of 1 images of imagesTs" in reason
    assert "t4_f1 = other (1.00)" in reason
    assert found.cases == ()  # of validation
    with pytest.raises(ValueError, match="t4_f1 = other"):
        found.refuse(allowed=False)


def test_it_is_found_after_the_raw_images_are_gone_and_else_cannot_be_told(tested, source):
    own = source(image_of(tested, "p4_f1"))
    shutil.rmtree(tested.raw / "imagesTs")
    found = judge_source(tested, own)
    assert found.contaminated is None
    assert "images of imagesTs are not at hand" in found.untold[0]
    shutil.copytree(tested.raw / "imagesTr", tested.raw / "imagesTs")
    for file in sorted((tested.raw / "imagesTs").glob("p*")):
        file.rename(file.with_name(file.name.replace("p4", "t4")))
    assert judge_source(tested, own).contaminated
    shutil.rmtree(tested.raw / "imagesTs")
    assert judge_source(tested, own).contaminated


def test_a_test_image_that_cannot_be_read_cannot_be_told(tested, source):
    (tested.raw / "imagesTs" / "t4_f0_0000.nii.gz").write_bytes(b"no image")
    found = judge_source(tested, source(NOISE))
    assert found.contaminated is None
    assert "images of imagesTs cannot be compared: test image" in found.untold[0]
    assert "t4_f0_0000.nii.gz" in found.untold[0]


def test_the_file_and_the_name_of_a_test_image_count_too(tested, source):
    found = judge_source(tested, source(NOISE, sha256="hash of t4_f0"))
    assert "1 images of imagesTs were made from the same files" in found.reasons[0]
    found = judge_source(tested, source(NOISE, patient="t4"))
    assert found.contaminated is None
    assert "2 images of imagesTs have the name of a patient seen in another" in found.untold[0]


def test_fine_tuning_says_so_in_refusal_log_and_checkpoint(
    tested, source, trainer_yaml, monkeypatch
):
    stock = tested.trainer(nnUNetTrainer, "2d", 0, continue_training=False)
    stock.initialize()
    file = tested.results.parent / "seen.pth"
    weights = plain_state_dict(stock.network)
    own = source(image_of(tested, "p4_f0"))
    save_atomically({"network_weights": weights, "nnssl": own}, file)
    monkeypatch.setenv("nnssl_pretrained_weights", str(file))
    trainer_yaml("nnSSLTested", SHORT)
    kind = type("nnSSLTested", (nnSSLFinetuner,), {"config_name": "nnSSLTested"})
    with pytest.raises(ValueError, match=r"near-duplicates of 1 images of imagesTs.*t4_f0 = other"):
        tested.trainer(kind).run_training()
    monkeypatch.setenv("nnssl_overrides", "weights.allow_contamination=true")
    trainer = tested.trainer(kind)
    trainer.perform_actual_validation = lambda *_: None
    trainer.run_training()
    record = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["nnssl"]
    assert record["weights"]["contaminated"] is True
    assert "images of imagesTs" in record["weights"]["contamination"][0]
    assert "CONTAMINATED (allow_contamination): Training saw" in Path(trainer.log_file).read_text()
