"""Scores of more than one teacher's outputs, and OTCE fitted to other tasks."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import toy_faculty

from experiments import _beyond, _task, compare_scores
from fdjax import faculty, scores


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A config, what two teachers say of its task, and the task."""
    folder = tmp_path_factory.mktemp("world")
    config = compare_scores.Config(**toy_faculty.make(folder), data_dir=str(folder))
    task = _task.target(config)
    return config, _task.observe(config.root, task), task


def card_of(config, name):
    return {card.name: card for card in faculty.cards(config.root)}[name]


def test_etran_is_stretched_over_the_faculty(place):
    _, seen, task = place
    found = _beyond.etran(seen, task)
    parts = {name: scores.SCORES[name] for name in ("etran_energy", "etran_lda")}
    values = _task.score(seen, task, parts)
    wanted = np.zeros(2)
    for share, name in ((0.15, "etran_energy"), (0.85, "etran_lda")):
        # Of two teachers one has all of a part, or nobody where they are equal.
        wanted += share * (values[name] > values[name].min())
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_otce_pairs_the_labelled_images_with_those_of_the_teachers_own_task(place):
    config, seen, task = place
    found = _beyond.otce_parts(config, seen, task)
    known = np.flatnonzero(task.train.labels >= 0)
    for position, name in enumerate(seen.names):
        card = card_of(config, name)
        own = _beyond.own_examples(card, config.data_dir, config.image_size)
        assert set(own.labels) == set(range(len(card.class_names)))
        said = faculty.observe(config.root, name, own.images[: len(known)])
        wanted = scores.otce_parts(
            jnp.asarray(said.features),
            jnp.asarray(own.labels[: len(known)]),
            seen.outputs.features[position][known],
            jnp.asarray(task.train.labels[known]),
            len(card.class_names),
            task.num_classes,
        )
        np.testing.assert_allclose(found[position], wanted, rtol=1e-4)


def test_a_teachers_own_images_are_none_of_the_targets(place):
    config, seen, task = place
    card = card_of(config, seen.names[0])
    own = _beyond.own_examples(card, config.data_dir, config.image_size)
    target = {image.tobytes() for image in task.train.images}
    assert Path(config.dataset).stem == card.source_task
    assert not target & {image.tobytes() for image in own.images}


def test_full_otce_is_fitted_to_the_other_tasks_alone():
    random = np.random.default_rng(0)
    parts = {task: random.uniform(size=(6, 2)) for task in "abc"}
    truth = {task: 0.3 - part @ [2.0, 1.0] for task, part in parts.items()}
    truth["c"] = random.uniform(size=6)
    parts["a"][2] = np.nan
    found = _beyond.fitted(parts, truth)
    known = np.arange(6) != 2
    # Tasks a and b obey one rule, which c is foretold by whatever c is like itself.
    np.testing.assert_allclose(found["c"], 0.3 - parts["c"] @ [2.0, 1.0])
    assert np.isnan(found["a"][2]) and not np.allclose(found["a"][known], truth["a"][known])
    assert np.isnan(_beyond.fitted({"a": parts["a"]}, truth)["a"]).all()
