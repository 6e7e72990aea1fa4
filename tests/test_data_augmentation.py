"""Random changes of images by name, and the way back from a student's images to a teacher's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import data
from fdjax.checks import InputError
from fdjax.data import preprocessing
from fdjax.data.augmentation import AUGMENTATIONS, crop_flip, shift, shift_flip

KEY = jax.random.key(0)
IMAGES = jnp.arange(1.0, 60 * 4 * 3 * 2 + 1).reshape(60, 4, 3, 2)


def windows_of(moved, framed):
    """For each image the corners of the windows of the framed image that it is."""
    height, width = moved.shape[1:3]
    places = [
        (i, j)
        for i in range(framed.shape[1] - height + 1)
        for j in range(framed.shape[2] - width + 1)
    ]
    return [
        [
            (i, j)
            for i, j in places
            if (image == whole[i : i + height, j : j + width]).all()  # exact: pixels are copied
        ]
        for image, whole in zip(moved, framed, strict=True)
    ]


def test_shift_moves_by_two_pixels_at_most_and_repeats_the_edge():
    moved = np.asarray(shift(KEY, IMAGES))
    framed = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    found = windows_of(moved, framed)
    assert all(len(corners) == 1 for corners in found)
    rows, columns = zip(*(corners[0] for corners in found), strict=True)
    # Of 60 images moved to one of 25 places each.
    assert set(rows) == set(columns) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("change", "far"), [(crop_flip, 4), (shift_flip, 2)])
def test_photographs_move_so_many_pixels_at_most_and_are_mirrored(change, far):
    moved = np.asarray(change(KEY, IMAGES))
    framed = np.pad(IMAGES, ((0, 0), (far, far), (far, far), (0, 0)))
    straight, mirrored = windows_of(moved, framed), windows_of(moved[:, :, ::-1], framed)
    assert all(a or b for a, b in zip(straight, mirrored, strict=True))
    visible = [i for i in range(60) if moved[i].any()]
    assert 0 < sum(bool(straight[i]) for i in visible) < len(visible)


def test_changes_hang_on_the_key_alone_also_under_jit():
    once, change = shift(KEY, IMAGES), jax.jit(shift)
    np.testing.assert_array_equal(change(KEY, IMAGES), once)
    assert (change(jax.random.key(1), IMAGES) != once).any()


def test_changes_have_names():
    changes = {"none": None, "shift": shift, "crop_flip": crop_flip, "shift_flip": shift_flip}
    assert changes == AUGMENTATIONS


def test_the_student_s_images_become_the_teacher_s():
    """By brightness and shape as by preprocessing the raw images."""
    task = data.synthetic(num_classes=2, height=6, width=4, channels=3, train_per_class=3)
    native = data.native_preprocessing(task)
    read = data.preprocess(task.train.images, native)
    raw = preprocessing.brightness(jnp.asarray(read), native)
    np.testing.assert_allclose(raw, task.train.images / np.float32(255), atol=1e-6)
    for shape in ((5, 8, 1), (6, 4, 3)):
        wanted = data.Preprocessing(*shape, [0.3] * shape[2], [0.5] * shape[2])
        again = (preprocessing.fit_shape(raw, shape) - 0.3) / 0.5
        np.testing.assert_allclose(again, data.preprocess(task.train.images, wanted), atol=1e-5)


def test_grey_becomes_colour_and_other_channels_are_refused():
    grey = jnp.ones((1, 2, 2, 1))
    assert preprocessing.fit_shape(grey, (2, 2, 3)).shape == (1, 2, 2, 3)
    with pytest.raises(InputError, match="only grey"):
        preprocessing.fit_shape(jnp.ones((1, 2, 2, 2)), (2, 2, 1))
