"""The solver against POT's numbers, linear programmes, finite differences and itself."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle_files
import pytest
import truth
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fdjax import checks, transport
from fdjax.transport import direct_sum, relaxation
from fdjax.transport.solver import check_problem

PROBLEMS = sorted(path.stem for path in (Path(__file__).parent / "oracles/ot").glob("p*.npz"))
QUICK = ("p05", "p13", "p16")  # compared in float32 by default too


def problem(seed=0, batch=6, source=7, target=5, spread=2.0):
    """Random cost and softmax marginals."""
    keys = jax.random.split(jax.random.key(seed), 3)
    cost = jax.random.uniform(keys[0], (source, target))
    a = jax.nn.softmax(spread * jax.random.normal(keys[1], (batch, source)))
    b = jax.nn.softmax(spread * jax.random.normal(keys[2], (batch, target)))
    return cost, a, b


def solve_oracle(name, dtype, **settings_):
    stored = oracle_files.load(f"ot/{name}")
    arrays = [jnp.asarray(stored[key], dtype) for key in ("cost", "a", "b")]
    cost, a, b = arrays[0], arrays[1][None], arrays[2][None]
    solve = jax.jit(lambda epsilon: transport.solve(cost, a, b, epsilon=epsilon, **settings_))
    return stored, [(k, solve(jnp.asarray(e, dtype))) for k, e in enumerate(stored["eps"])]


def assert_gradient(value, point, gradient):
    """Along a random direction of each argument, against finite differences."""
    for argument, (at, slope) in enumerate(zip(point, gradient, strict=True)):
        direction = jax.random.normal(jax.random.key(argument), at.shape, jnp.float64)

        def along(x, argument=argument):
            return value(*point[:argument], x, *point[argument + 1 :])

        expected = truth.directional_derivative(along, at, direction, 1e-5)
        np.testing.assert_allclose(jnp.sum(slope * direction), expected, rtol=1e-6, atol=1e-9)


def relative_potentials(stored, solution, k):
    """f + g in the oracle's convention P = a b exp((f+g-C)/eps), for labels of some mass.

    The stopping rule bounds marginal errors, which says nothing of a label of mass 1e-10.
    """
    with np.errstate(divide="ignore"):
        base = stored["eps"][k] * np.log(stored["a"][:, None] * stored["b"][None])
    found = np.add.outer(
        np.asarray(solution.source_potential[0], np.float64),
        np.asarray(solution.target_potential[0], np.float64),
    )
    known = np.add.outer(stored["f"][k], stored["g"][k])
    mass = np.logical_and.outer(stored["a"] > 1e-2, stored["b"] > 1e-2)
    return (found - np.where(mass, base, 0))[mass], known[mass]


@pytest.mark.parametrize(
    "name",  # in x64 all of them are compared by default
    [pytest.param(name, marks=[] if name[:3] in QUICK else pytest.mark.slow) for name in PROBLEMS],
)
def test_float32_agrees_with_the_oracle(name):
    stored, solved = solve_oracle(name, jnp.float32, threshold=5e-6, max_iterations=5000)
    for k, solution in solved:
        if stored["eps"][k] < 0.01:
            continue
        assert solution.converged.all()
        # Costs below 1e-6 of the largest price are zero in float32.
        scale = 1e-6 * stored["cost"].max()
        np.testing.assert_allclose(
            solution.transport_cost[0], stored["linear"][k], rtol=1e-4, atol=scale
        )
        np.testing.assert_allclose(
            solution.regularised_cost[0], stored["objective"][k], rtol=1e-4, atol=scale
        )
        found, known = relative_potentials(stored, solution, k)
        np.testing.assert_allclose(found, known, atol=1e-4 * np.abs(known).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_float64_agrees_with_the_oracle_at_every_epsilon(name, x64):
    stored, solved = solve_oracle(name, jnp.float64, threshold=1e-9, max_iterations=100_000)
    for k, solution in solved:
        np.testing.assert_allclose(
            solution.transport_cost[0], stored["linear"][k], rtol=1e-6, atol=1e-12
        )
        np.testing.assert_allclose(solution.regularised_cost[0], stored["objective"][k], rtol=1e-6)
        found, known = relative_potentials(stored, solution, k)
        np.testing.assert_allclose(found, known, atol=1e-6 * np.abs(known).max())


def test_oracle_gradients_by_the_envelope_theorem(x64):
    stored = oracle_files.load("ot/p02_5x8_peaked_dir_cos")
    cost, a = jnp.asarray(stored["cost"], jnp.float64), jnp.asarray(stored["a"])[None]
    logits = jnp.log(jnp.asarray(stored["b"]))[None]
    for k in range(3):
        gradient = jax.grad(
            lambda z, k=k: transport.transport_cost(
                cost,
                a,
                jax.nn.softmax(z),
                epsilon=stored["eps"][k],
                entropy="relative",
                threshold=1e-11,
            ).sum()
        )(logits)
        np.testing.assert_allclose(gradient[0], stored["grad_objective_wrt_logits_b"][k], atol=1e-8)


@pytest.mark.parametrize("entropy", [pytest.param("plain", marks=pytest.mark.slow), "relative"])
def test_gradients_against_finite_differences(x64, entropy):
    cost, a, b = (jnp.asarray(x, jnp.float64) for x in problem())
    logits = jnp.log(a), jnp.log(b)

    def value(cost, source_logits, target_logits, epsilon):
        return transport.transport_cost(
            cost,
            jax.nn.softmax(source_logits),
            jax.nn.softmax(target_logits),
            epsilon=epsilon,
            entropy=entropy,
            threshold=1e-12,
        ).sum()

    point = (cost, *logits, jnp.asarray(0.1, jnp.float64))
    gradient = jax.grad(value, argnums=(0, 1, 2, 3))(*point)
    assert_gradient(value, point, gradient)


def test_closed_form_to_labels_by_hand_and_against_the_solver():
    cost = jnp.array([[0.0, 1.0], [0.5, 0.0]])
    source = jnp.array([[0.25, 0.75], [1.0, 0.0]])
    labels = jnp.array([0, 1])
    found = transport.transport_cost_to_labels(cost, source, labels)
    np.testing.assert_allclose(found, [0.75 * 0.5, 1.0])
    solved = transport.solve(cost, source, jax.nn.one_hot(labels, 2), epsilon=0.1)
    np.testing.assert_allclose(found, solved.transport_cost, rtol=1e-6)
    unlabelled = transport.transport_cost_to_labels(cost, source, jnp.array([0, -1]))
    assert jnp.isnan(unlabelled[1]) and not jnp.isnan(unlabelled[0])


@pytest.mark.slow
def test_total_variation_is_the_limit_of_the_discrete_metric():
    _, a, b = problem(source=5)
    solution = transport.solve(1.0 - jnp.eye(5), a, b, epsilon=0.02)
    np.testing.assert_allclose(
        solution.transport_cost, 1 - jnp.minimum(a, b).sum(axis=-1), atol=2e-3
    )


def test_small_epsilon_tends_to_the_linear_programme():
    cost, a, b = problem()
    exact = [truth.exact_cost(cost, *pair) for pair in zip(a, b, strict=True)]
    sharp = [
        transport.solve(cost, a, b, epsilon=e, threshold=1e-4, max_iterations=20_000).transport_cost
        for e in (0.3, 0.03, 0.003)
    ]
    gaps = [np.abs(value - np.array(exact)).max() for value in sharp]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 2e-3


@pytest.mark.slow
def test_faculty_axis_vmap_and_jit_agree_with_one_by_one():
    costs = jnp.stack([problem(seed)[0] for seed in range(3)])
    _, a, b = problem(batch=6)
    sources, targets = jnp.stack([a, a[::-1], a]), jnp.stack([b, b, b[::-1]])

    def one(cost, source, target):
        return transport.transport_cost(cost, source, target, epsilon=0.1, threshold=1e-5)

    alone = jnp.stack([one(*row) for row in zip(costs, sources, targets, strict=True)])
    np.testing.assert_allclose(jax.jit(one)(costs, sources, targets), alone, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(one)(costs, sources, targets), alone, rtol=1e-5)
    over_examples = jax.vmap(lambda x, y: one(costs[0], x[None], y[None])[0])
    np.testing.assert_allclose(over_examples(sources[0], targets[0]), alone[0], rtol=1e-5)
    gradients = jax.vmap(jax.grad(lambda c, x, y: one(c, x, y).sum(), argnums=2))
    np.testing.assert_allclose(
        gradients(costs, sources, targets),
        jax.grad(lambda y: one(costs, sources, y).sum())(targets),
        atol=1e-4,
    )


def test_plan_has_the_marginals_and_the_cost_of_the_solution():
    cost, a, b = problem()
    solution = transport.solve(cost, a, b, epsilon=0.05, threshold=1e-5)
    plan = transport.plan(solution, cost, 0.05)
    np.testing.assert_allclose(plan.sum(axis=-1), a, atol=2e-5)
    np.testing.assert_allclose(plan.sum(axis=-2), b, atol=2e-6)
    np.testing.assert_allclose((plan * cost).sum(axis=(1, 2)), solution.transport_cost, rtol=1e-5)
    for i in range(2):
        expected = truth.sinkhorn(cost, a[i], b[i], 0.05)
        np.testing.assert_allclose(plan[i], expected[0], atol=2e-5)
        np.testing.assert_allclose(solution.regularised_cost[i], expected[2], rtol=1e-5)


def test_warm_start_needs_fewer_iterations():
    cost, a, b = problem()
    first = transport.solve(cost, a, b, epsilon=0.02, threshold=1e-5)
    again = transport.solve(
        cost,
        a,
        b,
        epsilon=0.02,
        threshold=1e-5,
        initial=(first.source_potential, first.target_potential),
    )
    assert again.iterations.sum() < first.iterations.sum()
    np.testing.assert_allclose(again.transport_cost, first.transport_cost, rtol=1e-4)


def test_a_constant_in_the_start_costs_no_digits():
    cost, a, b = problem()
    cold = transport.solve(cost, a, b, epsilon=0.02, threshold=1e-5)
    far = (cold.source_potential + 200.0, cold.target_potential - 200.0)  # 10,000 epsilon
    warm = transport.solve(cost, a, b, epsilon=0.02, threshold=1e-5, initial=far)
    assert warm.converged.all()
    np.testing.assert_allclose(warm.transport_cost, cold.transport_cost, rtol=1e-4)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 1.0]), st.floats(0.5, 4.0))
def test_symmetry_permutation_shift_and_bounds(seed, epsilon, spread):
    cost, a, b = problem(seed, spread=spread)
    tight = {"epsilon": epsilon, "threshold": 1e-5, "max_iterations": 5000}
    base = transport.solve(cost, a, b, **tight)
    assume(bool(base.converged.all()))
    swapped = transport.solve(cost.T, b, a, **tight)
    np.testing.assert_allclose(swapped.regularised_cost, base.regularised_cost, atol=3e-5)
    order = jax.random.permutation(jax.random.key(seed), cost.shape[0])
    permuted = transport.solve(cost[order], a[:, order], b, **tight)
    np.testing.assert_allclose(permuted.regularised_cost, base.regularised_cost, atol=3e-5)
    shift = jnp.arange(cost.shape[1], dtype=jnp.float32)
    shifted = transport.solve(cost + shift, a, b, **tight)
    np.testing.assert_allclose(
        shifted.transport_cost, base.transport_cost + b @ shift, rtol=1e-4, atol=1e-4
    )
    exact = truth.exact_cost(cost, a[0], b[0])
    assert exact - 2e-5 <= base.transport_cost[0] <= base.regularised_cost[0] + 2e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -0.1}, "`epsilon` must be positive"),
        ({"threshold": 0.0}, "`threshold` must be positive"),
        ({"max_iterations": 0}, "`max_iterations` must be positive"),
        ({"cost": jnp.full((7, 5), jnp.nan)}, "`cost` must be finite"),
        ({"target": jnp.full((6, 5), -0.2)}, "`target` must hold masses"),
        ({"target": jnp.ones((6, 5))}, "the same mass"),
    ],
)
def test_bad_input_is_refused(change, message):
    cost, a, b = problem()
    arguments = {"cost": cost, "source": a, "target": b, "epsilon": 0.1} | change
    with pytest.raises(checks.InputError, match=message):
        transport.solve(**arguments)


@pytest.mark.parametrize(("name", "shape"), [("source", (6, 3)), ("target", (5, 5))])
def test_shapes_that_do_not_fit_are_refused(name, shape):
    cost, a, b = problem()
    arguments = {"source": a, "target": b} | {name: jnp.ones(shape) / shape[1]}
    with pytest.raises(checks.InputError, match=f"`{name}` must have shape"):
        check_problem(cost, epsilon=0.1, **arguments)  # `solve` without the tests' type checks


def test_wrong_labels_are_refused():
    cost, a, _ = problem()
    with pytest.raises(checks.InputError, match="must lie in"):
        transport.transport_cost_to_labels(cost, a, jnp.array([0, 1, 2, 3, 4, 5]))


def test_over_relaxation_is_chosen_from_the_observed_rate():
    """Young's relation on a linear iteration of known rate, and its two guards."""
    plain, iterations = 0.9, 10
    best = 2 / (1 + np.sqrt(1 - plain))
    first = jnp.array([1.0, 1.0, 1.5, 1.3])
    # Rates: plain Sinkhorn; above the best relaxation; growing error; first check.
    rate = jnp.array([plain, 0.1, 1.2, 0.0])
    before = jnp.array([1.0, 1.0, 1.0, jnp.inf])
    after = jnp.where(rate > 0, rate**iterations, 0.5)
    chosen = direct_sum.next_relaxation(first, before, after, iterations)
    # 0.1 at relaxation 1 means that plain Sinkhorn has rate 0.1.
    expected = np.array([best, 2 / (1 + np.sqrt(0.9)), 1.25, 1.3])
    np.testing.assert_allclose(chosen, expected, rtol=1e-5)
    # From below the best the relation gives the same answer.
    below = jnp.array([1.2])
    linear = np.roots([1, 2 * (1.2 - 1) - 1.2**2 * plain, (1.2 - 1) ** 2]).real.max()
    again = direct_sum.next_relaxation(below, jnp.ones(1), jnp.full(1, linear**10), 10)
    np.testing.assert_allclose(again, [best], rtol=1e-4)


def test_an_over_relaxed_update_keeps_small_masses_and_far_ratios():
    """In float32 as the formula in float64, whose squares of masses do not underflow."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (3000, 1)
    mass = 10 ** jax.random.uniform(keys[0], shape, minval=-37, maxval=0)
    ratio = 10 ** jax.random.uniform(keys[1], shape, minval=-15, maxval=15)
    old = 10 ** jax.random.uniform(keys[2], shape, minval=-18, maxval=18)
    # What the present marginal, mass / ratio, would not hold is no scaling of this range.
    ratio = jnp.maximum(ratio, mass)
    product = mass / ratio / old
    fits = (mass / ratio > 1e-37) & (product > 1e-37) & (product < 1e37)
    mass, ratio, old, product = (x[fits[:, 0]] for x in (mass, ratio, old, product))
    m, p, o = (np.asarray(x, np.float64) for x in (mass, product, old))
    assert len(m) > 1000 and m.min() < 1e-30
    for w in (1.0, 1.5, 1.9):
        r, e = m / (o * p), w - 1
        expected = m / p * ((1 + e) * r + 1 - e) / ((1 - e) * r + 1 + e)
        held = (expected > 1e-37) & (expected < 1e37)
        found = np.asarray(relaxation.relaxed(mass, product, old, jnp.full((1, 1), w)))
        np.testing.assert_allclose(found[held], expected[held], rtol=1e-5)
    none = relaxation.relaxed(jnp.zeros_like(mass), product, old, jnp.ones((1, 1)))
    np.testing.assert_array_equal(none, 0.0)
    resting = relaxation.relaxed(mass, product, old, jnp.full((1, 1), relaxation.RESTING))
    np.testing.assert_array_equal(resting, old)


@pytest.mark.parametrize("labels", [slice(None), 4])
def test_an_offset_of_the_cost_costs_no_float_range(labels):
    """Of all teacher labels or of one, by a thousand nats, whose rounding is 1e-4 of a nat."""
    cost, a, b = problem(source=10, target=7)
    tight = {"epsilon": 0.05, "threshold": 1e-5}
    base = transport.solve(cost, a, b, **tight)
    offset = transport.solve(cost.at[labels].add(50.0), a, b, **tight)
    np.testing.assert_array_equal(offset.domain, 0)
    assert (offset.iterations <= base.iterations + 10).all()
    expected = base.transport_cost + 50 * a[:, labels].reshape(len(a), -1).sum(axis=1)
    np.testing.assert_allclose(offset.transport_cost, expected, rtol=2e-4)


def test_over_relaxation_saves_iterations_and_changes_no_answer():
    cost, a, b = problem(batch=16, source=30, target=30, spread=1.0)
    solution = transport.solve(cost, a, b, epsilon=0.01, threshold=1e-4)
    assert solution.converged.all()
    _, sharp, relative = truth.sinkhorn(cost, a[0], b[0], 0.01, tolerance=1e-6)
    np.testing.assert_allclose(solution.transport_cost[0], sharp, rtol=1e-3)
    np.testing.assert_allclose(solution.regularised_cost[0], relative, rtol=1e-4)
    # As many iterations of plain Sinkhorn on one of these examples leave it far away.
    plan, *_ = truth.sinkhorn(cost, a[0], b[0], 0.01, iterations=int(solution.iterations[0]))
    assert np.abs(plan.sum(axis=0) - b[0]).sum() > 1e-3


@pytest.mark.parametrize("name", ["p00_5x5_dir_dir_unif", "p02_5x8_peaked_dir_cos"])
def test_oracle_gradients_of_the_sharp_cost(name, x64):
    stored = oracle_files.load(f"ot/{name}")
    cost, a = jnp.asarray(stored["cost"], jnp.float64), jnp.asarray(stored["a"])[None]
    logits = jnp.log(jnp.asarray(stored["b"]))[None]
    for k in range(3):
        gradient = jax.grad(
            lambda z, k=k: transport.sharp_cost(
                cost, a, jax.nn.softmax(z), epsilon=stored["eps"][k], threshold=1e-11
            ).sum()
        )(logits)
        np.testing.assert_allclose(gradient[0], stored["grad_linear_wrt_logits_b"][k], atol=1e-7)


def test_the_sharp_cost_against_finite_differences(x64):
    cost, a, b = (jnp.asarray(x, jnp.float64) for x in problem())
    # Two teachers, the second with a label that has no mass.
    costs, logits = jnp.stack([cost, cost[::-1]]), jnp.log(jnp.stack([a, a[::-1]]))
    logits = logits.at[1, :, 2].set(-jnp.inf)
    targets = jnp.log(jnp.stack([b, b]))

    def value(cost, source_logits, target_logits, epsilon):
        source, target = jax.nn.softmax(source_logits), jax.nn.softmax(target_logits)
        return transport.sharp_cost(cost, source, target, epsilon=epsilon, threshold=1e-12).sum()

    point = (costs, logits, targets, jnp.asarray(0.1, jnp.float64))
    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*point)
    value = jax.jit(value)
    assert_gradient(value, point, gradient)


def test_second_derivatives_are_refused_and_not_wrong():
    cost, a, b = problem()

    def slope(y):
        return jax.grad(lambda y: transport.transport_cost(cost, a, y, epsilon=0.1).sum())(y)

    with pytest.raises(checks.InputError, match="second derivatives"):
        jax.grad(lambda y: (slope(y) ** 2).sum())(b)
