"""A resized task against Pillow and by what must stay as it was."""

import numpy as np
import pytest
from PIL import Image

from fdjax import data
from fdjax.checks import InputError


def test_resize_is_pillows_bilinear_and_leaves_labels_alone():
    task = data.synthetic(channels=3)
    small = data.resize(task, 5)
    assert small.train.images.shape[1:] == (5, 5, 3)
    assert small.train.images.dtype == np.uint8
    assert small.class_names == task.class_names
    np.testing.assert_array_equal(small.test.labels, task.test.labels)
    expected = Image.fromarray(task.train.images[0]).resize((5, 5), Image.Resampling.BILINEAR)
    # Pillow rounds after each of the two directions.
    difference = small.train.images[0].astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1


def test_resize_to_the_same_size_changes_nothing():
    task = data.synthetic()
    same = data.resize(task, task.train.images.shape[1])
    np.testing.assert_array_equal(same.train.images, task.train.images)


def test_resize_of_a_task_without_test_images():
    task = data.synthetic()
    empty = data.Task("x", task.train, task.test.rows(np.arange(0)), task.class_names)
    assert data.resize(empty, 4).test.images.shape == (0, 4, 4, 1)


def test_resize_refuses_a_size_of_nothing():
    with pytest.raises(InputError, match="size"):
        data.resize(data.synthetic(), 0)
