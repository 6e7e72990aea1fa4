"""Preprocessing against values worked by hand, and augmentation's invariants."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fdjax import data
from fdjax.checks import InputError
from fdjax.data import preprocessing as module

PLAIN = data.Preprocessing(2, 2, 1, (0.0,), (1.0,))
KEY = jax.random.key(0)


def test_native_preprocessing_standardises_the_train_images():
    task = data.synthetic(channels=3)
    native = data.native_preprocessing(task)
    x = data.preprocess(task.train.images, native)
    assert (native.height, native.width, native.channels) == (8, 8, 3)
    # Pixels are rounded to float32, about 1e-7 each.
    np.testing.assert_allclose(x.mean((0, 1, 2), dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(x.std((0, 1, 2), dtype=np.float64), 1, atol=1e-6)


def test_native_preprocessing_of_float_images_and_of_a_constant_channel():
    task = data.synthetic(channels=3)
    images = task.train.images / np.float32(255)
    images[..., 1] = 0.25
    test = data.Split(images[:5], task.train.labels[:5])
    floats = data.Task("x", data.Split(images, task.train.labels), test, task.class_names)
    native = data.native_preprocessing(floats)
    exact = data.native_preprocessing(task)
    np.testing.assert_allclose(native.mean[0], exact.mean[0], rtol=1e-6)
    np.testing.assert_allclose(native.std[2], exact.std[2], rtol=1e-6)
    assert (native.mean[1], native.std[1]) == (0.25, 1.0)


def test_preprocess_scales_and_standardises():
    images = np.array([[[[0], [51]], [[102], [255]]]], np.uint8)
    x = data.preprocess(images, data.Preprocessing(2, 2, 1, (0.2,), (0.5,)))
    np.testing.assert_allclose(x[0, :, :, 0], [[-0.4, 0.0], [0.4, 1.6]], atol=1e-6)
    assert x.dtype == np.float32


def test_preprocess_repeats_grey_and_takes_the_luma_of_colour():
    grey = np.full((1, 2, 2, 1), 51, np.uint8)
    three = data.Preprocessing(2, 2, 3, (0.0, 0.1, 0.2), (1.0, 1.0, 2.0))
    np.testing.assert_allclose(data.preprocess(grey, three)[0, 0, 0], [0.2, 0.1, 0.0], atol=1e-7)
    colour = np.zeros((1, 2, 2, 3), np.uint8)
    colour[...] = (255, 0, 51)
    luma = 0.299 + 0.114 * 0.2
    np.testing.assert_allclose(data.preprocess(colour, PLAIN), luma, rtol=1e-6)


def test_preprocess_resizes_as_pillow_does():
    images = data.synthetic(height=12, width=10, noise=1.0).train.images[:3]
    for height, width in ((5, 7), (20, 24)):
        x = data.preprocess(images, data.Preprocessing(height, width, 1, (0.0,), (1.0,)))
        for got, image in zip(x, images, strict=True):
            pillow = Image.fromarray(image[..., 0].astype(np.float32)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
            # Float32 in both; only the order of the sums differs.
            np.testing.assert_allclose(255 * got[..., 0], np.asarray(pillow), atol=1e-3)


def test_preprocess_in_pieces_gives_the_same(monkeypatch):
    images = data.synthetic().train.images[:11]
    wanted = data.Preprocessing(4, 4, 1, (0.3,), (0.7,))
    whole = data.preprocess(images, wanted)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * 64 * 4)  # four images of 8 x 8
    np.testing.assert_allclose(data.preprocess(images, wanted), whole, atol=1e-6)
    assert data.preprocess(images[:0], wanted).shape == (0, 4, 4, 1)


def test_preprocess_refuses():
    images = data.synthetic().train.images
    done = data.preprocess(images, data.native_preprocessing(data.synthetic()))
    with pytest.raises(InputError, match="look preprocessed already"):
        data.preprocess(done, PLAIN)
    done[...] = np.nan
    with pytest.raises(InputError, match="look preprocessed already"):
        data.preprocess(done, PLAIN)
    with pytest.raises(InputError, match="images with 2 channels cannot become images with 1"):
        data.preprocess(np.zeros((1, 2, 2, 2), np.uint8), PLAIN)


def test_preprocessing_checks_itself_and_survives_json():
    again = data.Preprocessing(**json.loads(json.dumps(dataclasses.asdict(PLAIN))))
    assert again == PLAIN
    assert hash(again) == hash(PLAIN)
    for settings, message in (
        ({"std": (0.0,)}, "`std` must be positive"),
        ({"height": 0}, "`height` must be positive"),
        ({"mean": (0.0, 0.0)}, r"`mean` must have shape \(1\)"),
        ({"mean": (float("nan"),)}, "`mean` must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(PLAIN, **settings)


def test_augment_cuts_windows_out_of_the_framed_image():
    images = jnp.arange(1.0, 2 * 4 * 3 * 2 + 1).reshape(2, 4, 3, 2)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for key in jax.random.split(KEY, 40):
        moved = np.asarray(data.augment(images, key, padding=1, flip=False))
        for row in range(2):
            matches = [
                (i, j)
                for i in range(3)
                for j in range(3)
                if (moved[row] == framed[row, i : i + 4, j : j + 3]).all()
            ]
            assert len(matches) == 1
            seen.add(matches[0])
    assert len(seen) == 9


def test_augment_mirrors_about_half():
    images = jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (400, 2, 4, 1))
    out = np.asarray(data.augment(images, KEY, padding=0))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert ((out == images).all((1, 2, 3)) | mirrored).all()
    assert 150 < mirrored.sum() < 250  # five standard deviations


def test_augment_may_do_nothing():
    images = jnp.ones((2, 4, 4, 1))
    np.testing.assert_array_equal(data.augment(images, KEY, padding=0, flip=False), images)
    with pytest.raises(InputError, match="`padding` must not be negative"):
        data.augment(images, KEY, padding=-1)


def test_augment_is_the_same_under_jit_and_vmap():
    images = jax.random.normal(KEY, (3, 5, 6, 6, 2))
    keys = jax.random.split(KEY, 3)
    plain = jnp.stack([data.augment(*pair) for pair in zip(images, keys, strict=True)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(data.augment))(images, keys), plain)
    assert (data.augment(images[0], keys[1]) != plain[0]).any()


def test_augment_passes_gradients_to_pixels_that_stay():
    gradient = jax.grad(lambda x: data.augment(x, KEY, padding=1).sum())(jnp.ones((3, 4, 4, 1)))
    assert set(np.unique(gradient)) <= {0.0, 1.0}
    assert gradient.sum() >= 3 * 9
