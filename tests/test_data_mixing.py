"""Mixtures of labelled images: between two of them, and of nothing else."""

import numpy as np
import pytest

from fdjax import data
from fdjax.checks import InputError


def few():
    return data.few_shot(data.synthetic(), 3, seed=0)


def test_a_mixture_lies_between_two_different_labelled_images():
    task = few()
    mixed = data.mix(task, 40, seed=1)
    before = len(task.train)
    np.testing.assert_array_equal(mixed.train.images[:before], task.train.images)
    np.testing.assert_array_equal(mixed.train.labels[:before], task.train.labels)
    assert (mixed.train.labels[before:] == -1).all() and len(mixed.train) == before + 40
    assert mixed.train.images.dtype == np.uint8
    known = task.train.images[task.train.labels >= 0].astype(float)
    for image in mixed.train.images[before:].astype(float):
        best = np.inf
        for i, first in enumerate(known):
            for second in known[:i]:
                step = first - second
                share = np.sum((image - second) * step) / np.sum(step**2)
                if 0 <= share <= 1:
                    best = min(best, np.abs(second + share * step - image).max())
        assert best <= 1.0  # rounded to whole levels


def test_mixtures_follow_from_the_seed():
    first, again, other = (data.mix(few(), 5, seed=seed).train.images for seed in (2, 2, 3))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_too_few_labelled_images_are_refused():
    task = few()
    one = np.where(np.arange(len(task.train)) == 0, task.train.labels, np.int32(-1))
    alone = data.Task("x", data.Split(task.train.images, one), task.test, task.class_names)
    with pytest.raises(InputError, match="two labelled train images, got 1"):
        data.mix(alone, 5, seed=0)
    with pytest.raises(InputError, match="count"):
        data.mix(task, 0, seed=0)
