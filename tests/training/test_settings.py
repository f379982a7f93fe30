"""Settings that contradict each other are refused, and the warm-up is what it says."""

from __future__ import annotations

import pytest

from nnssl.training.settings import FinetuningSettings, PretrainingSettings


def test_a_warmup_as_long_as_the_run_is_the_longest():
    PretrainingSettings(num_epochs=2, warmup_epochs=2)
    FinetuningSettings(num_epochs=2, warmup_epochs=2)
    for kind in (PretrainingSettings, FinetuningSettings):
        with pytest.raises(ValueError, match=r"warmup_epochs: found 3 with .*num_epochs: 2; allow"):
            kind(num_epochs=2, warmup_epochs=3)


def test_what_is_released_must_get_warm_before_the_end():
    FinetuningSettings(num_epochs=5, warmup_epochs=3, freeze_encoder_epochs=2)
    with pytest.raises(ValueError, match=r"found 3 after 3 frozen ones .*; allowed: 0 to 2"):
        FinetuningSettings(num_epochs=5, warmup_epochs=3, freeze_encoder_epochs=3)


def test_an_encoder_may_be_frozen_for_the_whole_run():
    FinetuningSettings(num_epochs=5, warmup_epochs=3, freeze_encoder_epochs=5)


def test_a_frozen_encoder_and_a_second_warmup():
    assert FinetuningSettings(freeze_encoder_epochs="all").frozen_epochs > 10**6
    FinetuningSettings(num_epochs=5, freeze_encoder_epochs=2, warmup_epochs=2, rewarm_all=True)
    for frozen in (0, 5, "all"):
        with pytest.raises(ValueError, match=r"rewarm_all: found true .* allowed with 1 to 4"):
            FinetuningSettings(num_epochs=5, freeze_encoder_epochs=frozen, rewarm_all=True)


def test_the_rate_rises_linearly_and_falls_to_the_end():
    settings = PretrainingSettings(num_epochs=4, num_iterations_per_epoch=5, warmup_epochs=1)
    rates = [settings.learning_rate(step) / settings.initial_lr for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert rates[-1] == pytest.approx(0.010926, abs=1e-5)  # (1 + cos(14 pi / 15)) / 2
