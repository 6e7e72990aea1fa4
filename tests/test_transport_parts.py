"""A solve in parts gives what a solve at once gives, and holds no more than it was told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checks, transport
from fdjax.transport import parts


def problems(*faculty, batch=11, source=7, target=5):
    """Random costs and marginals of a faculty."""
    random = np.random.default_rng(0)
    cost = random.random((*faculty, source, target), np.float32)
    a, b = (
        random.dirichlet(np.full(labels, 0.3), (*faculty, batch)).astype(np.float32)
        for labels in (source, target)
    )
    return tuple(map(jnp.asarray, (cost, a, b)))


def bytes_of(examples, teachers=1, source=7, target=5):
    """As `parts.largest` counts them."""
    return 4 * (12 * source * target * teachers + 6 * (source + target) * examples)


@pytest.mark.parametrize(
    ("faculty", "limit", "part"),
    [
        ((), bytes_of(4) + 1, (1, 4)),
        ((5,), bytes_of(2 * 11, teachers=2) + 1, (2, 11)),
        ((2, 3), 10**9, (6, 11)),
        pytest.param((2, 3), bytes_of(4 * 11, teachers=4), (4, 11), marks=pytest.mark.slow),
        pytest.param((3,), 1, (1, 1), marks=pytest.mark.slow),
    ],
)
def test_parts_give_what_one_solve_gives(faculty, limit, part):
    cost, a, b = problems(*faculty)
    teachers = int(np.prod(faculty, dtype=int))
    assert parts.largest(teachers, 11, 7, 5, 4, limit) == part
    settings = {"epsilon": 0.05, "threshold": 1e-5}
    whole = transport.solve(cost, a, b, **settings)
    found = transport.solve(cost, a, b, memory_limit=limit, **settings)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, whole)
    assert found.converged.all()
    for name in ("transport_cost", "regularised_cost"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-4)
    start = (found.source_potential, found.target_potential)
    again = jax.jit(
        lambda *of: transport.solve(*of, initial=start, memory_limit=limit, **settings)
    )(cost, a, b)
    assert int(again.iterations.max()) < int(found.iterations.max())
    np.testing.assert_allclose(again.regularised_cost, whole.regularised_cost, rtol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        (8, 1024, 100, 20),
        pytest.param((1, 8192, 100, 20), marks=pytest.mark.slow),
        pytest.param((4, 512, 1000, 100), marks=pytest.mark.slow),
    ],
)
def test_no_more_is_held_than_was_allowed(shape):
    teachers, batch, source, target = shape
    arrays = problems(teachers, batch=batch, source=source, target=target)

    def held(limit):
        solve = jax.jit(lambda *of: transport.solve(*of, epsilon=0.5, memory_limit=limit))
        return solve.lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    limit = 6 * 2**20
    assert held(limit) < limit < held(None)


def test_bad_input_is_refused():
    cost, a, b = problems()
    with pytest.raises(checks.InputError, match="`memory_limit` must be positive"):
        transport.solve(cost, a, b, epsilon=0.1, memory_limit=0)
    with pytest.raises(checks.InputError, match="`source` must be finite"):
        transport.solve(cost, a.at[0, 0].set(jnp.nan), b, epsilon=0.1, memory_limit=2**20)
    with pytest.raises(checks.InputError, match="same mass"):
        transport.solve(cost, 2 * a, b, epsilon=0.1, memory_limit=2**20)
