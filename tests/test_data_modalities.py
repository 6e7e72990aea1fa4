"""Two sides of an image: known colours, and edges of known shapes."""

import numpy as np
import pytest

from fdjax import data
from fdjax.checks import InputError

# CIE L*a*b* of sRGB's corners under D65, as any table of colours has them.
COLOURS = {
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (128, 128, 128): (53.59, 0.0, 0.0),
}


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_colours_are_those_of_the_table(form):
    images = np.array(list(COLOURS), np.uint8).reshape(-1, 1, 1, 3)
    if form == "float32":
        images = (images / 255).astype(np.float32)
    found = data.luminance_chrominance(images).reshape(-1, 3)
    wanted = (np.array(list(COLOURS.values())) + np.array([0, 128, 128])) / (100, 255, 255)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert found.dtype == np.float32


def test_a_grey_picture_has_no_colour():
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)
    found = data.luminance_chrominance(grey)
    np.testing.assert_allclose(found[..., 1:], 128 / 255, atol=1e-4)
    assert (np.diff(found[..., 0].reshape(-1)) > 0).all()


def test_edges_are_where_brightness_changes():
    images = np.zeros((2, 4, 6, 3), np.uint8)
    images[0, :, 3:] = 255
    found = data.brightness_edges(images)
    np.testing.assert_allclose(found[0, :, :, 0], [[0, 0, 0, 1, 1, 1]] * 4)
    half = 0.5 / np.sqrt(2)
    np.testing.assert_allclose(found[0, :, :, 1], [[0, 0, half, half, 0, 0]] * 4, atol=1e-7)
    np.testing.assert_array_equal(found[1], 0)


def test_images_that_have_no_second_side_are_refused():
    with pytest.raises(InputError, match="these have 1 channels"):
        data.luminance_chrominance(np.zeros((1, 2, 2, 1), np.uint8))
    with pytest.raises(InputError, match="at least 2 x 2 pixels, got 1 x 5"):
        data.brightness_edges(np.zeros((1, 1, 5, 1), np.uint8))
