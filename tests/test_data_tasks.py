"""Tasks: their checks and digests, and the tasks made from them."""

import dataclasses
import hashlib

import numpy as np
import pytest

from fdjax import data
from fdjax.checks import InputError

TASK = data.synthetic(num_classes=4, train_per_class=10, test_per_class=3)


def without_labels(part: data.Split) -> data.Split:
    return dataclasses.replace(part, labels=np.full(len(part), -1, np.int32))


def rows_of(part: data.Split, whole: data.Split) -> list[int]:
    """Where each image of `part` stands in `whole`; the images are all different."""
    place = {image.tobytes(): row for row, image in enumerate(whole.images)}
    return [place[image.tobytes()] for image in part.images]


def test_synthetic_is_balanced_and_repeatable():
    again = data.synthetic(num_classes=4, train_per_class=10, test_per_class=3)
    assert TASK.train.images.shape == (40, 8, 8, 1)
    assert np.bincount(TASK.test.labels).tolist() == [3] * 4
    assert again.digest == TASK.digest
    assert data.synthetic(seed=1).digest != data.synthetic().digest


def test_synthetic_without_noise_repeats_its_patterns():
    task = data.synthetic(height=7, width=5, channels=3, noise=0.0)
    assert task.train.images.shape[1:] == (7, 5, 3)
    for label in range(task.num_classes):
        same = task.train.images[task.train.labels == label]
        assert (same == same[0]).all()


def test_synthetic_is_learnable_by_nearest_centre():
    centres = np.stack(
        [TASK.train.images[TASK.train.labels == label].mean(0) for label in range(4)]
    )
    distance = ((TASK.test.images[:, None] - centres) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == TASK.test.labels).mean() > 0.9


def test_digest_sees_values_shape_type_and_names():
    a = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert data.digest(a) == hashlib.sha256(b"|u1(2, 3);" + bytes(range(6))).hexdigest()
    digests = {
        data.digest(a),
        data.digest(a.reshape(3, 2)),
        data.digest(a.astype(np.int32)),
        data.digest(a + 1),
        data.digest(a, a),
        dataclasses.replace(TASK, class_names=("a", "b", "c", "d")).digest,
        TASK.digest,
    }
    assert len(digests) == 7


def test_digest_ignores_memory_layout_byte_order_and_task_name():
    a = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert data.digest(a) == data.digest(np.asfortranarray(a)) == data.digest(a.astype(">i4"))
    assert dataclasses.replace(TASK, name="other").digest == TASK.digest


def test_arrays_are_read_only_and_the_callers_are_left_alone():
    images, labels = np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2, np.int32)
    part = data.Split(images, labels)
    with pytest.raises(ValueError, match="read-only"):
        part.images[0] = 1
    images[0] = 1
    assert len(part) == 2


def test_task_refuses_what_does_not_fit():
    train, test = TASK.train, TASK.test
    with pytest.raises(InputError, match="equally many, got 40 images and 39 labels"):
        data.Split(train.images, train.labels[1:])
    with pytest.raises(InputError, match="'a' stands 2 times"):
        data.Task("x", train, test, ("a", "b", "c", "a"))
    with pytest.raises(InputError, match=r"train labels` must lie in \[-1, 2\], got 3"):
        data.Task("x", train, test, ("a", "b", "c"))
    with pytest.raises(InputError, match="test labels` must lie in"):
        data.Task("x", train, without_labels(test), TASK.class_names)
    with pytest.raises(InputError, match="one size"):
        data.Task("x", train, data.Split(test.images[:, 1:], test.labels), TASK.class_names)


def test_restrict_keeps_and_renumbers_in_the_order_given():
    small = data.restrict(TASK, [2, "class_0"], name="pair")
    assert (small.name, small.class_names) == ("pair", ("class_2", "class_0"))
    rows = np.flatnonzero(np.isin(TASK.train.labels, [0, 2]))
    np.testing.assert_array_equal(small.train.images, TASK.train.images[rows])
    np.testing.assert_array_equal(small.train.labels, TASK.train.labels[rows] == 0)
    assert np.bincount(small.test.labels).tolist() == [3, 3]


def test_restrict_to_all_classes_changes_nothing():
    assert data.restrict(TASK, range(4)).digest == TASK.digest


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat"], "no class 'cat'; its classes are class_0, class_1"),
        ([4], "no class 4; its labels are 0 to 3"),
        ([-1], "no class -1"),
        ([1, "class_1"], "'class_1' twice"),
        ([], "at least one class"),
    ],
)
def test_restrict_refuses(classes, message):
    with pytest.raises(InputError, match=message):
        data.restrict(TASK, classes)


def test_restrict_refuses_unlabelled_images():
    with pytest.raises(InputError, match="call `restrict` before `few_shot`"):
        data.restrict(data.few_shot(TASK, 2, seed=0), [0])


def test_few_shot_labels_so_many_of_each_class_and_keeps_the_rest():
    few = data.few_shot(TASK, 3, seed=1)
    assert np.bincount(few.train.labels[:12]).tolist() == [3] * 4
    assert (few.train.labels[12:] == -1).all()
    rows = rows_of(few.train, TASK.train)
    assert sorted(rows) == list(range(40))
    np.testing.assert_array_equal(few.train.labels[:12], TASK.train.labels[rows[:12]])
    assert few.test is TASK.test


def test_few_shot_nests_and_depends_on_the_seed():
    def labelled(shots, seed):
        few = data.few_shot(TASK, shots, seed=seed, unlabelled=0).train
        return set(rows_of(few, TASK.train))

    assert labelled(2, 0) < labelled(5, 0)
    assert labelled(2, 0) != labelled(2, 1)
    assert labelled(2, 0) == labelled(2, 0)


def test_few_shot_keeps_as_many_unlabelled_as_asked():
    few = data.few_shot(TASK, 3, seed=1, unlabelled=5)
    assert len(few.train) == 17
    assert len(set(rows_of(few.train, TASK.train))) == 17
    with pytest.raises(InputError, match=r"`unlabelled` must lie in \[0, 28\]"):
        data.few_shot(TASK, 3, seed=1, unlabelled=29)


def test_few_shot_refuses_too_many_shots_and_bad_seeds():
    with pytest.raises(InputError, match="class 'class_0' of task 'synthetic' has only 10"):
        data.few_shot(TASK, 11, seed=0)
    with pytest.raises(InputError, match="`shots` must be positive"):
        data.few_shot(TASK, 0, seed=0)
    with pytest.raises(InputError, match="`seed` must lie"):
        data.few_shot(TASK, 1, seed=-1)


def test_split_divides_every_class_and_loses_nothing():
    first, second = data.split(TASK.train, 0.7, seed=0)
    assert np.bincount(first.labels).tolist() == [7] * 4
    rows = rows_of(first, TASK.train), rows_of(second, TASK.train)
    assert sorted(rows[0] + rows[1]) == list(range(40))
    assert rows[0] == sorted(rows[0])
    other, _ = data.split(TASK.train, 0.7, seed=1)
    assert rows_of(other, TASK.train) != rows[0]


def test_split_leaves_one_of_each_class_on_either_side():
    pair = data.few_shot(TASK, 2, seed=0, unlabelled=2).train
    for fraction in (0.01, 0.99):
        for part in data.split(pair, fraction, seed=0):
            assert set(part.labels) == {-1, 0, 1, 2, 3}


def test_split_refuses():
    with pytest.raises(InputError, match="`fraction` must lie between 0 and 1, got 1"):
        data.split(TASK.train, 1.0, seed=0)
    with pytest.raises(InputError, match="too few to divide"):
        data.split(TASK.train.rows(np.array([0])), 0.5, seed=0)
