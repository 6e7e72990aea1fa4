"""Changed copies of labelled images: a little different, and of nothing else."""

import numpy as np
import pytest

from fdjax import data
from fdjax.checks import InputError
from fdjax.data import varying


def few():
    return data.few_shot(data.synthetic(), 3, seed=0)


def test_copies_are_of_labelled_images_each_equally_often(monkeypatch):
    monkeypatch.setattr(varying, "_changed", lambda image, *change: image)
    task = few()
    known = task.train.images[task.train.labels >= 0]
    varied = data.vary(task, 2 * len(known), seed=1).train
    before = len(task.train)
    np.testing.assert_array_equal(varied.images[:before], task.train.images)
    np.testing.assert_array_equal(varied.labels[:before], task.train.labels)
    assert (varied.labels[before:] == -1).all() and varied.images.dtype == np.uint8
    labelled = data.vary(task, 2 * len(known), seed=1, labelled=True).train
    np.testing.assert_array_equal(labelled.images, varied.images)
    for image, label in zip(labelled.images[before:], labelled.labels[before:], strict=True):
        (row,) = np.flatnonzero((task.train.images == image).all(axis=(1, 2, 3)))
        assert task.train.labels[row] == label
    counts = [(varied.images[before:] == image).all(axis=(1, 2, 3)).sum() for image in known]
    assert counts == [2] * len(known)


def test_a_change_is_an_affine_map_about_the_centre():
    image = np.random.default_rng(0).uniform(size=(9, 9, 2)).astype(np.float32)
    still = varying._changed(image, 0.0, 0.0, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(still, image, atol=1e-6)
    # A tenth of ten rows is one row; the edge is repeated behind it.
    tall = np.random.default_rng(1).uniform(size=(10, 6, 1)).astype(np.float32)
    moved = varying._changed(tall, 0.0, 0.0, 0.0, 0.1, 0.0)
    np.testing.assert_allclose(moved[:-1], tall[1:], atol=1e-6)
    np.testing.assert_allclose(moved[-1], tall[-1], atol=1e-6)
    turned = varying._changed(image, np.pi / 2, 0.0, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=1e-5)
    # A linear image stays linear: at the centre it is what it was, its slope is the zoom.
    row, column = np.mgrid[:9, :9].astype(np.float32)
    ramp = (row + 2 * column)[..., None]
    zoomed = varying._changed(ramp, 0.0, -0.2, 0.0, 0.0, 0.0)
    centred = (row - 4 + 2 * (column - 4)) * np.exp(-0.2) + ramp[4, 4]
    np.testing.assert_allclose(zoomed[..., 0], centred, atol=1e-4)
    slanted = varying._changed(ramp, 0.0, 0.0, 0.2, 0.0, 0.0)
    wanted = row - 4 + 0.2 * (column - 4) + 2 * (column - 4) + ramp[4, 4]
    np.testing.assert_allclose(slanted[2:-2, 2:-2, 0], wanted[2:-2, 2:-2], atol=1e-4)


def test_copies_follow_from_the_seed():
    first, again, other = (data.vary(few(), 5, seed=seed).train.images for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_cannot_be_varied_is_refused():
    task = few()
    nothing = np.full(len(task.train), -1, np.int32)
    silent = data.Task("x", data.Split(task.train.images, nothing), task.test, task.class_names)
    with pytest.raises(InputError, match="no train image of task 'x' has a label"):
        data.vary(silent, 5, seed=0)
    with pytest.raises(InputError, match="count"):
        data.vary(task, 0, seed=0)
