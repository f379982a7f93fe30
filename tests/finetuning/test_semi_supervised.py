"""What a student sees and is asked: every voxel of a mixed image is asked what it shows."""

from __future__ import annotations

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
    DownsampleSegForDSTransform,
)

from nnssl.finetuning.semi_supervised import (
    LabelForm,
    SemiSupervised,
    downsample,
    drop_channels,
    mix_labelled,
)
from nnssl.losses.pseudo_labels import PseudoLabels

IGNORED = 3
QUIET = dict.fromkeys(("noise", "blur", "brightness", "contrast", "gamma"))  # strong = weak
SIZE = (12, 15)


def make_keys(count, first=0):
    return torch.tensor([(0, 0, 0, first + i) for i in range(count)])


def make_rows(labelled=2, unlabelled=2, size=SIZE):
    """Images whose first channel tells sample (10 each) and whose second one tells the label."""
    random = torch.Generator().manual_seed(0)
    values = torch.randint(0, 3, (labelled + unlabelled, 1, *size), generator=random)
    number = 10.0 * torch.arange(1, labelled + unlabelled + 1).reshape(-1, 1, *[1] * len(size))
    images = torch.cat([number.expand(values.shape), values.float()], 1)
    counted = torch.rand((unlabelled, 1, *size), generator=random) > 0.3
    said = values[labelled:]
    probabilities = torch.nn.functional.one_hot(said[:, 0], 3).movedim(-1, 1).float()
    pseudo = PseudoLabels(said, counted, probabilities, said)
    return (images[:labelled], values[:labelled]), images[labelled:], pseudo


def compose(semi, rows, form=None, weight=0.5):
    labelled, unlabelled, pseudo = rows
    keys = make_keys(len(labelled[0])), make_keys(len(unlabelled), len(labelled[0]))
    form = form or LabelForm(0, IGNORED)
    spacing = (1.0,) * (unlabelled.ndim - 2)
    views = unlabelled, semi.strengthen(unlabelled, keys[1], spacing)
    return semi.compose(labelled, views, pseudo, keys, form, weight)


@pytest.mark.parametrize("counts", [(2, 2), (3, 1), (1, 3), (1, 1)])
@pytest.mark.parametrize("size", [SIZE, (6, 9, 12)])
def test_copy_paste_asks_every_voxel_what_it_shows_and_once(counts, size):
    rows = make_rows(*counts, size)
    lesson = compose(SemiSupervised(**QUIET), rows)
    assert len(lesson.images) == sum(counts)
    true, pseudo = lesson.targets
    assert (true.weight, pseudo.weight) == (1.0, 0.5)
    labelled, counted = counts[0], rows[2].counted
    for target, of_labelled in ((true, True), (pseudo, False)):
        shown = lesson.images[target.rows]
        sample, label = shown[:, :1], shown[:, 1:]
        mine = (sample <= 10 * labelled) == of_labelled
        asked = target.values != IGNORED
        assert torch.equal(target.values[asked].float(), label[asked])
        assert not asked[~mine].any()
        if of_labelled:
            assert asked[mine].all()
    # of the pseudo-labels those that count are asked, wherever they were pasted
    pasted = lesson.images[pseudo.rows]
    for i in range(counts[1]):
        here = pasted[:, :1] == 10 * (labelled + i + 1)
        places = here & counted[i][None]
        assert torch.equal(pseudo.values.ne(IGNORED) & here, places)
    pairs = min(counts)
    inside = round(2 / 3 * size[0]) * round(2 / 3 * size[1])
    inside *= round(2 / 3 * size[2]) if len(size) == 3 else 1
    first = lesson.images[labelled - pairs, 0]
    assert int((first > 10 * labelled).sum()) == inside


def test_comparison_tells_the_same_place_of_the_teacher():
    rows = make_rows()
    lesson = compose(SemiSupervised(**QUIET), rows)
    found = lesson.comparison
    shown = lesson.images[found.rows]
    assert torch.equal(found.mask, shown[:, :1] > 20)
    assert torch.equal(found.classes[found.mask].float(), shown[:, 1:][found.mask])
    assert torch.equal(found.probabilities.argmax(1, keepdim=True), found.classes)
    assert found.weight == 0


def test_mean_teacher_has_soft_targets_alone():
    lesson = compose(SemiSupervised(consistency="mean_teacher", **QUIET), make_rows())
    assert len(lesson.targets) == 1
    assert lesson.comparison.weight == 0.5


def test_without_mixing_rows_stay_apart():
    rows = make_rows(3, 2)
    lesson = compose(SemiSupervised(mix="none", **QUIET), rows)
    assert torch.equal(lesson.images, torch.cat([rows[0][0], rows[1]]))
    assert [t.rows for t in lesson.targets] == [slice(0, 3), slice(3, 5)]
    assert torch.equal(lesson.targets[0].values, rows[0][1])
    assert lesson.targets[1].values.eq(IGNORED).equal(~rows[2].counted)


def test_cutmix_pastes_images_and_answers_alike():
    rows = make_rows(1, 8)
    lesson = compose(SemiSupervised(mix="cutmix", **QUIET), rows)
    shown, asked = lesson.images[1:], lesson.targets[1].values
    own = 10.0 * torch.arange(2, 10).reshape(-1, 1, 1, 1)
    assert 0.02 < (shown[:, :1] != own).float().mean() < 0.4
    known = asked != IGNORED
    assert torch.equal(asked[known].float(), shown[:, 1:][known])
    assert torch.equal(lesson.comparison.classes.float(), shown[:, 1:])
    assert torch.equal(lesson.images[:1], rows[0][0])


def test_mixup_blends_images_and_weights_of_answers_by_one_share():
    rows = make_rows(2, 2)
    lesson = compose(SemiSupervised(mix="mixup", **QUIET), rows)
    first, second, third, fourth = lesson.targets
    share = first.weight
    assert 0.5 <= share <= 1
    assert (second.weight, third.weight) == pytest.approx((1 - share, 0.5 * share))
    blended = share * rows[0][0] + (1 - share) * rows[0][0].flip(0)
    assert torch.allclose(lesson.images[:2], blended, atol=1e-4)
    assert torch.equal(second.values, first.values.flip(0))
    assert torch.equal(fourth.values, third.values.flip(0))


def test_mixup_needs_hard_labels():
    with pytest.raises(ValueError, match="mixup blends hard labels"):
        SemiSupervised(mix="mixup", consistency="mean_teacher")


def test_labelled_images_are_mixed_in_pairs():
    (images, values), _, _ = make_rows(4, 1)
    lesson = mix_labelled(images, values, make_keys(4), "copy_paste", 2 / 3)
    (target,) = lesson.targets
    assert torch.equal(target.values.float(), lesson.images[:, 1:])
    own = 10.0 * torch.arange(1, 5).reshape(-1, 1, 1, 1)
    pasted = (lesson.images[:, :1] != own).float().mean((1, 2, 3))
    assert torch.allclose(pasted, torch.full((4,), 8 * 10 / (12 * 15)))
    assert mix_labelled(images[:1], values[:1], make_keys(1), "copy_paste", 0.5).images is not None


def test_regions_are_ignored_by_their_last_channel():
    form = LabelForm(2, -1)
    values = torch.tensor([[True, False], [True, True]]).reshape(1, 2, 1, 2)
    where = torch.tensor([[True, False]]).reshape(1, 1, 1, 2)
    ignored = form.ignore(values, where)
    assert torch.equal(ignored[:, :2], values)
    assert torch.equal(ignored[:, 2:], where)
    again = form.ignore(ignored, ~where)
    assert again[:, 2:].all()


def test_a_label_that_nnunet_ignores_stays_ignored():
    values = torch.tensor([0, 1, IGNORED]).reshape(1, 1, 1, 3)
    assert torch.equal(LabelForm(0, IGNORED).complete(values), values)
    regions = torch.tensor([1, 0, 0, 0, 0, 1], dtype=torch.bool).reshape(1, 2, 1, 3)
    completed = LabelForm(1, -1).complete(regions)
    assert torch.equal(completed, regions)
    assert LabelForm(2, -1).complete(regions).shape[1] == 3


def test_coarse_labels_are_those_of_nnunet():
    values = torch.randint(0, 4, (2, 1, 16, 20), generator=torch.Generator().manual_seed(0))
    theirs = DownsampleSegForDSTransform([[1, 1], [0.5, 0.5], [0.25, 0.5]])
    for sample in values:
        for coarse in theirs(image=sample.float(), segmentation=sample.clone())["segmentation"]:
            ours = downsample(sample[None], coarse.shape[1:])[0]
            assert torch.equal(ours, coarse)


def test_weight_rises_after_the_supervised_share():
    semi = SemiSupervised(supervised_share=0.4, ramp_share=0.2, unlabelled_weight=2.0)
    weights = [semi.find_weight(step, 10) for step in range(10)]
    assert weights == pytest.approx([0, 0, 0, 0, 1, 2, 2, 2, 2, 2])


def test_strong_views_change_intensity_alone():
    random = torch.Generator().manual_seed(0)
    images = torch.rand((6, 2, *SIZE), generator=random)
    strong = SemiSupervised(noise=None, blur=None).strengthen(images, make_keys(6), (1.0, 1.0))
    assert not torch.equal(strong, images)
    order = images.flatten(2).argsort(-1)  # brightness, contrast and gamma keep the order
    sorted_strong = strong.flatten(2).gather(-1, order)
    assert (sorted_strong.diff(dim=-1) >= -1e-5).all()


def test_largest_component_is_kept_of_every_class():
    labels = torch.zeros((1, 1, 8, 8), dtype=torch.long)
    labels[0, 0, 0, :3], labels[0, 0, 4:6, :2], labels[0, 0, 7, 6:] = 1, 1, 2
    logits = torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float() * 9
    said = SemiSupervised(largest_component=True).ask_teacher(logits, LabelForm(0, IGNORED))
    assert not said.labels[0, 0, 0].any()
    assert said.labels[0, 0, 4:6, :2].eq(1).all()
    assert said.labels[0, 0, 7, 6:].eq(2).all()


def test_a_third_stream_sees_weak_views_with_dropped_features():
    rows = make_rows(2, 2)
    lesson = compose(SemiSupervised(feature_dropout=0.5), rows)
    assert lesson.dropped == 2
    assert torch.equal(lesson.images[-2:], rows[1])
    assert lesson.targets[-1].rows == slice(4, 6)
    maps = torch.ones(6, 400, 4, 4)
    torch.manual_seed(0)
    (dropped,) = drop_channels([maps], 2, 0.25)
    assert torch.equal(dropped[:4], maps[:4])
    shares = dropped[4:].amax((2, 3))
    assert shares.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(shares.mean()) == pytest.approx(1, abs=0.1)
