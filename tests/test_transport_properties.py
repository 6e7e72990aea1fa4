"""Laws that hold for every transport problem, held against problems that hypothesis picks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import entr, rel_entr

from fdjax import sharding, transport
from fdjax.transport import domains, solver

# (source, target, batch): few, as every shape compiles; with a shape its transpose.
SQUARE = (6, 6, 4)
SHAPES = (SQUARE, (6, 6, 1), (6, 3, 4), (3, 6, 4), (1, 6, 4), (6, 1, 4))
THRESHOLD = 1e-4
MOST = 5000


def laws(max_examples):
    """Hypothesis without a deadline (the first case compiles), the same cases in every run."""
    return settings(deadline=None, derandomize=True, max_examples=max_examples)


class Problem(NamedTuple):
    """Examples that share a cost within [0, 1]; epsilon is a share of that range."""

    cost: np.ndarray
    source: np.ndarray
    target: np.ndarray
    epsilon: float


def softmax(rng, batch, labels, spread):
    logits = spread * rng.normal(size=(batch, labels))
    return np.exp(logits - logits.max(axis=1, keepdims=True))


def one_hot(rng, batch, labels):
    return np.eye(labels)[rng.integers(labels, size=batch)]


def with_zeros(rng, batch, labels):
    kept = (rng.random((batch, labels)) < 0.6) | (one_hot(rng, batch, labels) > 0)
    return softmax(rng, batch, labels, 1.0) * kept


MASSES = {
    "flat": lambda *sizes: softmax(*sizes, 0.3),
    "peaked": lambda *sizes: softmax(*sizes, 3.0),
    "very peaked": lambda *sizes: softmax(*sizes, 10.0),
    "with zeros": with_zeros,
    "one-hot": one_hot,
    "nearly one-hot": lambda *sizes: one_hot(*sizes) + 1e-6,
}


def cosine(rng, source, target):
    rows, columns = rng.normal(size=(source, 3)), rng.normal(size=(target, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    return (1 - rows @ columns.T) / 2


def detour(rng, source, target):
    """Every row and column holds a zero, yet most mass has to go where a kernel underflows."""
    cost = rng.uniform(0.3, 1.0, size=(source, target))
    cost[0] = cost[:, 0] = 0.0
    return cost


COSTS = {
    "uniform": lambda rng, *shape: rng.random(shape),
    "zero or one": lambda rng, *shape: rng.integers(2, size=shape),
    "cosine": cosine,
    "detour": detour,
    "ties": lambda rng, *shape: rng.integers(5, size=shape) / 4,
    "constant": lambda rng, *shape: np.full(shape, 0.5),
}


def make(seed, shape, cost, source, target, epsilon):
    """A random problem of kinds that are keys of `COSTS` and `MASSES`."""
    rng = np.random.default_rng(seed)
    rows, columns, batch = shape
    masses = MASSES[source](rng, batch, rows), MASSES[target](rng, batch, columns)
    a, b = (np.float32(mass / mass.sum(axis=1, keepdims=True)) for mass in masses)
    return Problem(np.float32(COSTS[cost](rng, rows, columns)), a, b, epsilon)


SEEDS = st.integers(0, 2**32 - 1)
EPSILONS = st.floats(-3, 0).map(lambda power: 10**power)


def problems(shapes=SHAPES, epsilons=EPSILONS):
    kinds = [st.sampled_from(list(names)) for names in (COSTS, MASSES, MASSES)]
    return st.builds(make, SEEDS, st.sampled_from(shapes), *kinds, epsilons)


def solve(problem, *, max_iterations=MOST, threshold=THRESHOLD, **options):
    *arrays, epsilon = problem
    return transport.solve(
        *(jnp.asarray(array) for array in arrays),
        epsilon=epsilon,
        threshold=threshold,
        max_iterations=max_iterations,
        **options,
    )


def solved(problem, **options):
    """The solution of a problem whose every example converges."""
    solution = solve(problem, **options)
    assume(bool(solution.converged.all()))
    return solution


def rounding(problem):
    """Relative error of a plan whose exponents (f + g - cost) / epsilon are float32."""
    return 1e-6 * (1 + np.abs(problem.cost).max() / problem.epsilon)


def slack(problem):
    """Error of a value whose plan misses the marginals by the threshold."""
    largest = np.abs(problem.cost).max()
    return 3 * (THRESHOLD * np.ptp(problem.cost) + rounding(problem) * largest) + 1e-5


def assert_same_values(found, expected, atol):
    np.testing.assert_allclose(found.transport_cost, expected.transport_cost, atol=atol)
    np.testing.assert_allclose(found.regularised_cost, expected.regularised_cost, atol=atol)


def assert_identical(found, expected):
    for name, one, other in zip(found._fields, found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def unit(mass):
    mass = np.asarray(mass, np.float64)
    return mass / mass.sum(axis=-1, keepdims=True)


def certified(problem, solution):
    """Values of the plan that the potentials give, in float64, once its marginals are checked.

    Nothing but the potentials is taken from the solver: a plan exp((f + g - cost) / epsilon)
    with the right marginals is the only one.
    """
    cost, epsilon = np.asarray(problem.cost, np.float64), problem.epsilon
    f, g = (np.asarray(potential, np.float64) for potential in solution[:2])
    plan = np.exp((f[:, :, None] + g[:, None, :] - cost) / epsilon)
    a, b = unit(problem.source), unit(problem.target)
    error = np.abs(plan.sum(axis=2) - a).sum(axis=1)
    np.testing.assert_allclose(solution.marginal_error, error, atol=rounding(problem))
    np.testing.assert_allclose(plan.sum(axis=1), b, atol=rounding(problem))
    sharp = (plan * cost).sum(axis=(1, 2))
    divergence = rel_entr(plan, a[:, :, None] * b[:, None, :]).sum(axis=(1, 2))
    return sharp, sharp + epsilon * divergence


@laws(100)
@given(problems())
def test_mass_is_conserved_and_the_costs_are_those_of_the_plan(problem):
    solution = solved(problem)
    sharp, regularised = certified(problem, solution)
    np.testing.assert_allclose(solution.transport_cost, sharp, atol=rounding(problem))
    np.testing.assert_allclose(solution.regularised_cost, regularised, atol=slack(problem))


def test_hardly_any_problem_does_not_converge():
    """So that the other laws, which ask for convergence, do not discard what is hard."""
    seeds = iter(range(10**6))
    outcomes = [
        solve(make(next(seeds), SQUARE, cost, source, target, epsilon)).converged
        for epsilon in (0.001, 0.03)
        for cost in COSTS
        for source in MASSES
        for target in MASSES
    ]
    assert np.mean(outcomes) > 0.98


@laws(40)
@given(problems())
def test_symmetric_under_transposition(problem):
    cost, a, b, epsilon = problem
    turned = solved(Problem(cost.T, b, a, epsilon))
    assert_same_values(turned, solved(problem), slack(problem))


@laws(40)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_labels_and_examples_does_not_matter(problem, random):
    cost, a, b, epsilon = problem
    rows, columns, examples = (random.sample(range(n), n) for n in (*cost.shape, len(a)))
    permuted = Problem(
        cost[np.ix_(rows, columns)],
        a[np.ix_(examples, rows)],
        b[np.ix_(examples, columns)],
        epsilon,
    )
    found, expected = solved(permuted), solved(problem)
    assert_same_values(
        found, jax.tree.map(lambda x: x[np.array(examples)], expected), slack(problem)
    )


@laws(40)
@given(problems([shape for shape in SHAPES if shape[2] == 4]), st.sampled_from([-2.0, 0.0, 0.5, 9]))
def test_padding_changes_nothing(problem, fill):
    cost, a, b, epsilon = problem
    rows, columns = (SQUARE[axis] - cost.shape[axis] for axis in (0, 1))
    padded = Problem(
        np.pad(cost, ((0, rows), (0, columns)), constant_values=np.float32(fill)),
        np.pad(a, ((0, 0), (0, rows))),
        np.pad(b, ((0, 0), (0, columns))),
        epsilon,
    )
    found, expected = solved(padded), solved(problem)
    assert_same_values(found, expected, slack(problem) + rounding(padded))
    assert (found.source_potential[:, cost.shape[0] :] == -jnp.inf).all()
    assert (found.target_potential[:, cost.shape[1] :] == -jnp.inf).all()


@laws(40)
@given(problems(), SEEDS, st.sampled_from([0.01, 1.0, 100.0]))
def test_shifts_move_the_costs_by_the_mass_and_scales_scale_them(problem, seed, scale):
    cost, a, b, epsilon = problem
    rng = np.random.default_rng(seed)
    rows, columns = (np.float32(rng.uniform(-2, 2, size)) for size in cost.shape)
    moved = Problem(scale * (cost + rows[:, None] + columns), a, b, scale * epsilon)
    found, expected = solved(moved), solved(problem)
    shift = a @ rows + b @ columns
    by_mass = expected._replace(
        transport_cost=scale * (expected.transport_cost + shift),
        regularised_cost=scale * (expected.regularised_cost + shift),
    )
    assert_same_values(found, by_mass, scale * (slack(problem) + 4 * rounding(moved)))


@laws(60)
@given(problems(), EPSILONS)
def test_costs_do_not_fall_as_epsilon_grows(problem, other):
    low, high = sorted([problem.epsilon, other])
    sharper, blunter = (solved(problem._replace(epsilon=epsilon)) for epsilon in (low, high))
    most = slack(problem._replace(epsilon=low))
    assert (blunter.transport_cost >= sharper.transport_cost - most).all()
    assert (blunter.regularised_cost >= sharper.regularised_cost - most).all()


@laws(60)
@given(problems())
def test_costs_lie_between_the_linear_programme_and_the_product(problem):
    """And their distance from the linear programme is at most epsilon times an entropy.

    The best plan P without entropy has KL(P | a b) <= min(H(a), H(b)), so that
    <P, C> <= regularised cost <= LP + epsilon min(H(a), H(b)); likewise the product a b, which
    has none, bounds from above.
    """
    cost, epsilon = problem.cost, problem.epsilon
    a, b = unit(problem.source), unit(problem.target)
    solution, most = solved(problem), slack(problem)
    exact = np.array([truth.exact_cost(cost, *pair) for pair in zip(a, b, strict=True)])
    entropy = np.minimum(entr(a).sum(axis=1), entr(b).sum(axis=1))
    product = np.einsum("ni,ij,nj->n", a, cost, b)
    sharp, regularised = np.asarray(solution.transport_cost), np.asarray(solution.regularised_cost)
    assert (exact - most <= sharp).all()
    assert (sharp <= regularised + most).all()
    assert (regularised <= np.minimum(exact + epsilon * entropy, product) + most).all()


@laws(40)
@given(problems([SQUARE]), problems([SQUARE]), st.sampled_from(["auto", "log"]))
def test_an_answer_is_the_same_whatever_stands_beside_it(problem, others, domain):
    """To the last bit in a small batch: examples that are done rest while the others go on."""
    hard = others.source[1:], others.target[1:]
    beside = problem._replace(
        source=np.concatenate([problem.source[:1], hard[0]]),
        target=np.concatenate([problem.target[:1], hard[1]]),
    )
    found, expected = (
        jax.tree.map(lambda x: x[0], solve(one, domain=domain)) for one in (beside, problem)
    )
    assert_identical(found, expected)


@laws(40)
@given(problems([SQUARE]))
def test_an_answer_alone_is_that_in_a_batch(problem):
    together = solved(problem)
    for place in range(2):
        one = slice(place, place + 1)
        alone = solved(problem._replace(source=problem.source[one], target=problem.target[one]))
        assert_same_values(alone, jax.tree.map(lambda x, one=one: x[one], together), slack(problem))


@laws(10)
@given(SEEDS, st.integers(0, 119))
def test_the_last_of_a_large_batch_is_finished_apart_with_the_same_answer(seed, place):
    batch = make(seed, (6, 6, 120), "uniform", "one-hot", "flat", 0.03)  # done at the first check
    one = make(seed, (6, 6, 1), "uniform", "flat", "flat", 0.03)._replace(cost=batch.cost)
    alone = solved(one)
    assume(int(alone.iterations[0]) > 10)
    batch.source[place], batch.target[place] = one.source[0], one.target[0]
    together = solved(batch)
    np.testing.assert_array_equal(np.flatnonzero(together.domain), [place])
    last = jax.tree.map(lambda x: x[place : place + 1], together)
    assert_same_values(last, alone, slack(one))


@laws(60)
@given(problems([SQUARE]))
def test_the_domains_agree_where_they_hold(problem):
    fast, wide = solve(problem, domain="kernel"), solve(problem, domain="wide")
    slow = solved(problem, domain="log")
    held = np.isfinite(fast.transport_cost)
    for place, one in enumerate((fast, wide, slow)):
        assert (one.domain == place).all()
        both = np.isfinite(one.transport_cost) & np.asarray(one.converged)
        assert_same_values(
            *(jax.tree.map(lambda x, both=both: x[both], found) for found in (one, slow)),
            slack(problem),
        )
    # Doubles hold what singles hold, and "auto" leaves nothing to a domain that does not hold it.
    assert np.isfinite(wide.transport_cost)[held].all()
    found = solve(problem).domain
    assert (found[~held] > 0).all() and (found[np.isnan(wide.transport_cost)] == 2).all()


def test_a_plan_through_an_entry_that_underflows_is_not_missed():
    """The kernel without that entry has a plan as well, of the same marginals, but a dearer one."""
    cost = np.zeros((6, 6), np.float32)  # the zeros are of labels with hardly any mass, or none
    cost[1:3, 1:3] = [[0.675, 0.5], [0.5, 0.2]]  # 135 epsilons underflow, 100 do not
    mass = np.float32([[2e-6, 0.5 - 1e-6, 0.5 - 1e-6, 0, 0, 0]])
    problem = Problem(cost, mass, mass, 0.005)
    solution = solve(problem)
    assert solution.converged.all()
    sharp, _ = certified(problem, solution)
    np.testing.assert_allclose(sharp, (0.675 + 0.2) / 2, atol=1e-3)
    np.testing.assert_allclose(solution.transport_cost, sharp, atol=slack(problem))
    fast = np.asarray(solve(problem, domain="kernel").transport_cost)
    assert (np.isnan(fast) | (np.abs(fast - sharp) < slack(problem))).all()


@laws(40)
@given(problems([SQUARE]), SEEDS, st.sampled_from([0.01, 0.1, 1.0]))
def test_any_start_leads_to_the_same_answer(problem, seed, distance):
    rng = np.random.default_rng(seed)
    start = tuple(
        jnp.asarray(distance * rng.normal(size=mass.shape), jnp.float32) for mass in problem[1:3]
    )
    assert_same_values(solved(problem, initial=start), solved(problem), slack(problem))


SCALES = (0.02, 0.2, 1.0, 0.2, 30.0, 5.0)  # of the teachers' costs: some are far out of range


def make_faculty(seed, kinds):
    """Teachers with one epsilon, whose costs are of every size."""
    parts = [
        make(seed + place, SQUARE, *kind, 0.03)
        for place, kind in enumerate(zip(*kinds, strict=True))
    ]
    costs, sources, targets = (np.stack(arrays) for arrays in list(zip(*parts, strict=True))[:3])
    return Problem(costs * np.float32(SCALES)[:, None, None], sources, targets, 0.03)


def faculties():
    kinds = (["uniform", "cosine"], ["flat", "peaked"], ["flat", "peaked", "with zeros"])
    size = {"min_size": len(SCALES), "max_size": len(SCALES)}
    return st.builds(
        make_faculty, SEEDS, st.tuples(*(st.lists(st.sampled_from(kind), **size) for kind in kinds))
    )


@laws(20)
@given(faculties())
def test_every_example_of_a_faculty_has_its_own_domain(faculty):
    together = solved(faculty)
    needed = np.asarray(together.domain > 0).any(axis=1)
    assert needed[SCALES.index(30.0)] and not needed[SCALES.index(0.02)]
    for place in range(len(SCALES)):
        cost, source, target = (array[place] for array in faculty[:3])
        one = Problem(cost, source, target, faculty.epsilon)
        expected = jax.tree.map(lambda x, place=place: x[place], together)
        assert_same_values(solved(one), expected, slack(one))


@functools.cache
def over_devices():
    """The solver of faculties with two teachers a device, compiled once."""
    mesh = sharding.device_mesh(num_devices=len(SCALES) // 2)
    assert mesh.size == 3
    run = sharding.over_leading_axis(lambda arrays: solve(Problem(*arrays, 0.03)), mesh)
    return jax.jit(run)


@laws(10)
@given(faculties())
def test_teachers_on_several_devices_are_solved_as_on_one(faculty):
    expected = solved(faculty)
    found = over_devices()(tuple(jnp.asarray(array) for array in faculty[:3]))
    assert_same_values(found, expected, slack(faculty))
    assert found.converged.all() and len(np.unique(found.domain)) > 1


@pytest.fixture
def compiled_anew():
    """A function that forgets compiled solvers, which hold the size of a chunk."""

    def forget():
        domains.solve.clear_cache()
        solver._vmappable.cache_clear()

    forget()
    yield forget
    forget()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide", "log"])
def test_chunks_change_nothing(monkeypatch, compiled_anew, name):
    """Groups of one, three or all eight examples of a teacher, one or two groups at a time."""
    kinds = (["uniform", "cosine"], ["flat", "with zeros"], ["peaked", "nearly one-hot"])
    parts = [make(7, (5, 4, 8), *kind, 0.002)[:3] for kind in zip(*kinds, strict=True)]
    faculty = Problem(*(np.stack(arrays) for arrays in zip(*parts, strict=True)), 0.002)
    expected = solve(faculty, domain=name)
    assert expected.converged.all()
    ways = domains._ways()
    for width, groups in ((1, 1),) if name == "log" else ((1, 2), (3, 1), (3, 2), (8, 2)):
        compiled_anew()
        changed = ways | {name: ways[name]._replace(width=width, numbers=groups * 5 * 4)}
        monkeypatch.setattr(domains, "_ways", lambda changed=changed: changed)
        found = solve(faculty, domain=name)
        for field, one, other in zip(found._fields, found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=field)


@pytest.mark.slow
@laws(25)
@given(problems([(6, 3, 4)]))
def test_double_precision_gives_the_same_and_is_exact(problem):
    single = solved(problem)
    with jax.enable_x64():
        kept = solve(problem)
        double = Problem(*(np.asarray(array, np.float64) for array in problem[:3]), problem.epsilon)
        exact = solve(double, threshold=1e-9, max_iterations=100_000)
    assert (single.transport_cost.dtype, kept.transport_cost.dtype) == ("float32", "float32")
    assert exact.transport_cost.dtype == "float64"
    assert_same_values(kept, single, slack(problem))
    assume(bool(exact.converged.all()))
    assert_same_values(single, exact, slack(problem))
    sharp, regularised = certified(double, exact)
    np.testing.assert_allclose(exact.transport_cost, sharp, atol=1e-8)
    np.testing.assert_allclose(exact.regularised_cost, regularised, atol=1e-8)
