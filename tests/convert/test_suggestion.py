"""Which configuration suits converted images: one rule from spacing and size."""

from types import SimpleNamespace

import pytest

from nnssl.convert.records import suggest_configuration


@pytest.mark.parametrize(
    ("size", "spacing", "suits"),
    [
        ((216, 256, 10), (1.4, 1.4, 10.0), "2d"),  # short-axis cine
        ((512, 512, 100), (0.8, 0.8, 2.0), "3d_fullres"),  # CT
        ((40, 50, 40), (1.0, 1.0, 1.0), "3d_fullres"),
        ((12, 320, 320), (4.0, 0.9, 0.9), "2d"),  # sagittal spine
        ((256, 256, 30), (1.0, 1.0, 3.0), "2d"),  # just thick
        ((256, 256, 30), (1.0, 1.0, 2.9), "3d_fullres"),
        ((300, 200, 1), (1.0, 1.0, 1.0), "2d"),  # a picture
    ],
)
def test_thick_and_single_slices_suit_2d(size, spacing, suits):
    case = SimpleNamespace(size=size, spacing=spacing)
    other = SimpleNamespace(size=(60, 60, 60), spacing=(1.0, 1.0, 1.0))
    assert suggest_configuration([case, case, other])[0] == suits
