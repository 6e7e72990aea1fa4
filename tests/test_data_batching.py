"""Batches: every row once an epoch, the same wherever one begins."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import data, sharding
from fdjax.checks import InputError

TASK = data.synthetic(num_classes=3, train_per_class=5)
PART = TASK.train
FEW = data.few_shot(TASK, 2, seed=0).train  # 6 labelled rows, then 9 unlabelled


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def test_order_is_pinned():
    # Written down once: a run must find its place again under any later version.
    assert data.order(5, 12, seed=7).tolist() == [1, 0, 2, 3, 4, 2, 4, 3, 0, 1, 4, 0]


@pytest.mark.parametrize("num_examples", [1, 2, 7, 100])
def test_order_visits_every_row_once_an_epoch(num_examples):
    places = data.order(num_examples, 4 * num_examples, seed=3).reshape(4, num_examples)
    np.testing.assert_array_equal(np.sort(places), [np.arange(num_examples)] * 4)
    if num_examples == 100:
        assert len({tuple(epoch) for epoch in places}) == 4


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 25])
def test_order_can_begin_anywhere(start):
    whole = data.order(10, 60, seed=5)
    np.testing.assert_array_equal(data.order(10, 23, seed=5, start=start), whole[start:][:23])


def test_order_is_about_uniform():
    first = [data.order(4, 1, seed=seed)[0] for seed in range(2000)]
    # Four cells of 500 each, standard deviation 19.4; five of them either way.
    assert np.abs(np.bincount(first, minlength=4) - 500).max() < 97


def test_order_far_on_needs_no_walk():
    assert sorted(data.order(10, 10, seed=0, start=10**15)) == list(range(10))


def test_batches_hold_the_rows_they_name():
    for batch in take(data.batches(PART, 4, seed=0), 8):
        np.testing.assert_array_equal(batch.images, PART.images[batch.indices])
        np.testing.assert_array_equal(batch.labels, PART.labels[batch.indices])
        assert batch.indices.dtype == batch.labels.dtype == np.int32


def test_batches_run_across_epochs_and_follow_the_order():
    rows = np.concatenate([batch.indices for batch in take(data.batches(PART, 4, seed=2), 15)])
    np.testing.assert_array_equal(rows, data.order(15, 60, seed=2))


@pytest.mark.parametrize("labelled", [None, 3])
def test_batches_resume_where_they_ended(labelled):
    whole = take(data.batches(FEW, 7, seed=1, labelled=labelled), 9)
    resumed = take(data.batches(FEW, 7, seed=1, start=5, labelled=labelled), 4)
    for old, new in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(old.images, new.images)
        np.testing.assert_array_equal(old.indices, new.indices)


@pytest.mark.parametrize("labelled", [None, 2])
def test_parts_of_a_batch_make_the_batch(labelled):
    settings = {"seed": 1, "start": 3, "labelled": labelled}
    whole = take(data.batches(FEW, 6, **settings), 4)
    parts = [take(data.batches(FEW, 6, **settings, share=(n, 3)), 4) for n in range(3)]
    for batch, *own in zip(whole, *parts, strict=True):
        for leaf, *pieces in zip(batch, *own, strict=True):
            assert all(len(piece) == 2 for piece in pieces)
            np.testing.assert_array_equal(np.concatenate(pieces), leaf)


def test_batches_may_be_larger_than_the_data():
    batch = next(data.batches(PART, 40, seed=0))
    counts = np.bincount(batch.indices, minlength=15)
    assert counts.sum() == 40
    assert set(counts) == {2, 3}


def test_labelled_and_unlabelled_rows_have_epochs_of_their_own():
    batches = take(data.batches(FEW, 5, seed=0, labelled=2), 9)
    for batch in batches:
        assert (batch.labels[:2] >= 0).all()
        assert (batch.labels[2:] == -1).all()
    known = np.concatenate([batch.indices[:2] for batch in batches]).reshape(3, 6)
    unknown = np.concatenate([batch.indices[2:] for batch in batches]).reshape(3, 9)
    np.testing.assert_array_equal(np.sort(known), [np.arange(6)] * 3)
    np.testing.assert_array_equal(np.sort(unknown), [np.arange(6, 15)] * 3)


def test_batches_of_one_kind_only():
    assert (next(data.batches(FEW, 4, seed=0, labelled=0)).labels == -1).all()
    assert (next(data.batches(PART, 4, seed=0, labelled=4)).labels >= 0).all()


def test_seeds_differ():
    assert data.order(50, 50, seed=0).tolist() != data.order(50, 50, seed=1).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be positive"),
        ({"start": -1}, "`start` must not be negative"),
        ({"seed": -1}, "`seed` must lie"),
        ({"share": (2, 2)}, r"`share` must lie in \[0, 1\]"),
        ({"share": (0, 3)}, "a batch of 4 cannot be cut into 3 equal parts"),
        ({"labelled": 5}, r"`labelled` must lie in \[0, 4\]"),
        ({"labelled": 3}, r"1 images of `part` \(unlabelled\), but it has none"),
    ],
)
def test_batches_refuse_before_the_first_batch(settings, message):
    with pytest.raises(InputError, match=message):
        data.batches(PART, **{"batch_size": 4, "seed": 0, **settings})


def test_batches_refuse_an_empty_part():
    with pytest.raises(InputError, match="it has none"):
        data.batches(PART.rows(np.arange(0)), 4, seed=0)


def test_order_refuses():
    for settings in ({"num_examples": 0}, {"count": -1}, {"start": -1}, {"seed": -1}):
        with pytest.raises(InputError):
            data.order(**{"num_examples": 3, "count": 3, "seed": 0, **settings})


@pytest.mark.parametrize("start", [0, 4])
def test_batches_of_images_on_the_device_are_the_same(start):
    images, labels = jnp.asarray(PART.images, jnp.float32), jnp.asarray(PART.labels)
    found = data.resident_batches(images, labels, 7, seed=3, start=start)
    for own, other in zip(
        take(found, 5), take(data.batches(PART, 7, seed=3, start=start), 5), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, own, other)


def test_batches_on_the_device_can_be_spread_over_several():
    rows = sharding.by_rows(sharding.device_mesh("batch"))
    images, labels = jax.device_put(
        (np.asarray(PART.images, np.float32), PART.labels), sharding.everywhere(rows.mesh)
    )
    (batch,) = take(data.resident_batches(images, labels, 8, seed=3, sharding=rows), 1)
    assert {shard.data.shape[0] for shard in batch.images.addressable_shards} == {2}
    (whole,) = take(data.batches(PART, 8, seed=3), 1)
    jax.tree.map(np.testing.assert_array_equal, batch, whole)
    with pytest.raises(InputError, match="spread evenly over 4 devices"):
        data.resident_batches(images, labels, 6, seed=3, sharding=rows)
    with pytest.raises(InputError, match="`start` must not be negative"):
        data.resident_batches(images, labels, 8, seed=3, start=-1)
    with pytest.raises(InputError, match="the number of images"):
        data.resident_batches(images[:0], labels[:0], 8, seed=3)
