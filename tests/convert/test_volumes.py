"""Single volumes: bias field and orientation."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nnssl.convert.volumes import compare_geometry, correct_bias_field, find_orientation


def test_n4_flattens_a_ramp_and_keeps_the_geometry(miniature):
    ramp = np.broadcast_to(np.linspace(400, 800, 24), (4, 24, 24)).astype(np.int16)
    image = sitk.GetImageFromArray(ramp)
    image.SetDirection(miniature.DIRECTION)
    corrected = correct_bias_field(image)
    assert corrected.GetPixelID() == sitk.sitkFloat32
    assert compare_geometry(image, corrected) == []
    assert sitk.GetArrayFromImage(corrected).std() < 0.5 * ramp.std()


def test_orientation():
    image = sitk.Image(2, 2, 2, sitk.sitkUInt8)
    assert find_orientation(image) == "LPS"
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
    assert find_orientation(image) == "RSP"
