"""The known traps of entropic transport solvers, each with a test that fails without care."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth
from test_transport import problem

from fdjax import checks, costs, transport
from fdjax.transport import domains


@pytest.mark.parametrize("max_iterations", [1, 5, 10, 25])
def test_t01_an_early_stop_is_never_called_converged(max_iterations):
    cost, a, b = problem(spread=4.0)
    solution = transport.solve(cost, a, b, epsilon=0.01, max_iterations=max_iterations)
    plan = transport.plan(solution, cost, 0.01)
    error = jnp.abs(plan.sum(axis=-1) - a).sum(axis=-1)
    np.testing.assert_allclose(solution.marginal_error, error, atol=1e-4)
    assert int(solution.iterations.max()) == max_iterations
    np.testing.assert_array_equal(solution.converged, solution.marginal_error < 1e-3)
    assert not solution.converged.all()


def test_t02_cost_and_epsilon_scale_together():
    cost, a, b = problem()
    base = transport.solve(cost, a, b, epsilon=0.05)
    scaled = transport.solve(100 * cost, a, b, epsilon=5.0)
    np.testing.assert_allclose(scaled.transport_cost, 100 * base.transport_cost, rtol=1e-4)


@pytest.mark.parametrize("gap", [100.0, 1000.0, 1e9])
def test_t03_and_t06_zero_mass_leaves_finite_gradients(gap):
    cost, a, _ = problem()
    logits = jnp.zeros((6, 5)).at[:, 0].set(-gap)

    def loss(cost, source, logits):
        target = jax.nn.softmax(logits)
        return transport.transport_cost(cost, source, target, epsilon=0.05).sum()

    a = a.at[:, 2].set(0.0)
    a = a / a.sum(axis=-1, keepdims=True)
    for gradient in jax.grad(loss, argnums=(0, 1, 2))(cost, a, logits):
        assert jnp.isfinite(gradient).all()


def test_t03_a_masked_class_has_no_gradient_and_the_others_have_theirs():
    cost, a, b = problem()
    logits = jnp.log(b)

    def loss(logits, cost):
        target = jax.nn.softmax(logits)
        return transport.transport_cost(cost, a, target, epsilon=0.1, threshold=1e-5).sum()

    alone = jax.grad(loss)(logits, cost)
    wide = jnp.concatenate([logits, jnp.full((6, 1), -jnp.inf)], axis=1)
    masked = jax.grad(loss)(wide, jnp.concatenate([cost, jnp.full((7, 1), 0.5)], axis=1))
    np.testing.assert_allclose(masked[:, :5], alone, atol=1e-4)
    np.testing.assert_array_equal(masked[:, 5], 0.0)


@pytest.mark.slow
def test_t04_and_t05_a_batch_of_concentrated_problems_has_a_gradient():
    key = jax.random.key(0)
    source = jax.random.dirichlet(key, jnp.full(10, 0.3), (64,))
    cost = jax.random.uniform(key, (10, 7))

    def loss(logits, source):
        target = jax.nn.softmax(logits)
        return transport.transport_cost(cost, source, target, epsilon=0.05).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    for part in gradient(jnp.zeros((64, 7)), source):
        assert jnp.isfinite(part).all()
    # No linear system is solved, so none can be singular.
    assert "linear_solve" not in str(jax.make_jaxpr(gradient)(jnp.zeros((64, 7)), source))


@pytest.mark.parametrize("fill", [0.0, 0.7, 50.0])
def test_t06_padding_changes_no_value(fill):
    cost, a, b = problem()
    base = transport.solve(cost, a, b, epsilon=0.05, threshold=1e-5)
    padded = transport.solve(
        jnp.pad(cost, ((0, 4), (0, 2)), constant_values=fill),
        jnp.pad(a, ((0, 0), (0, 4))),
        jnp.pad(b, ((0, 0), (0, 2))),
        epsilon=0.05,
        threshold=1e-5,
    )
    np.testing.assert_allclose(padded.transport_cost, base.transport_cost, rtol=2e-5)
    np.testing.assert_allclose(padded.regularised_cost, base.regularised_cost, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 0.005])
def test_t06_a_start_without_potentials_is_a_cold_one(epsilon):
    cost, a, b = problem()
    cold = transport.solve(cost, a, b, epsilon=epsilon)
    masked = a.at[:, 2].set(0.0)
    masked = masked / masked.sum(axis=-1, keepdims=True)
    before = transport.solve(cost, masked, b, epsilon=epsilon)
    spoiled = jnp.full_like(before.source_potential, jnp.nan)
    for f in (before.source_potential, spoiled):
        warm = transport.solve(cost, a, b, epsilon=epsilon, initial=(f, before.target_potential))
        np.testing.assert_array_equal(warm.converged, cold.converged)
        np.testing.assert_allclose(warm.regularised_cost, cold.regularised_cost, atol=2e-3)


def test_t06_an_example_without_mass_costs_nothing():
    cost, a, b = problem()

    def loss(a, b):
        return transport.transport_cost(cost, a, b, epsilon=0.05, entropy="relative")

    empty = a.at[1].set(0.0), b.at[1].set(0.0)
    solution = transport.solve(cost, *empty, epsilon=0.05)
    assert solution.transport_cost[1] == solution.regularised_cost[1] == 0
    assert solution.converged.all()
    np.testing.assert_allclose(loss(*empty)[jnp.array([0, 2])], loss(a, b)[jnp.array([0, 2])])
    for gradient in jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1))(*empty):
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_t07_half_precision_is_solved_in_single(dtype):
    cost, a, b = problem()
    half = transport.solve(cost, a.astype(dtype), b.astype(dtype), epsilon=0.05)
    assert half.transport_cost.dtype == jnp.float32 and half.converged.all()
    full = transport.solve(cost, a, b, epsilon=0.05)
    np.testing.assert_allclose(half.transport_cost, full.transport_cost, atol=5e-3)
    gradient = jax.grad(lambda y: transport.transport_cost(cost, a, y, epsilon=0.05).sum())(
        b.astype(dtype)
    )
    assert gradient.dtype == dtype and jnp.isfinite(gradient).all()


def test_t08_a_mismatch_of_mass_is_refused_and_marked_under_jit():
    cost, a, b = problem()
    wrong = b.at[2].multiply(1.01)
    with pytest.raises(checks.InputError, match="the same mass"):
        transport.solve(cost, a, wrong, epsilon=0.1)
    solution = jax.jit(lambda y: transport.solve(cost, a, y, epsilon=0.1))(wrong)
    assert jnp.isnan(solution.transport_cost[2]) and not solution.converged[2]
    others = jnp.array([0, 1, 3, 4, 5])
    assert jnp.isfinite(solution.transport_cost[others]).all() and solution.converged[others].all()
    assert int(solution.iterations.max()) < 2000


@pytest.mark.parametrize("epsilon", [0.01, 0.005, 0.001])
def test_t10_an_underflowing_kernel_gives_no_wrong_number(epsilon):
    cost, a, b = problem(source=10, target=7, spread=3.0)
    solution = transport.solve(cost, a, b, epsilon=epsilon, max_iterations=20_000)
    for i in np.flatnonzero(solution.converged)[:3]:
        _, sharp, relative = truth.sinkhorn(cost, a[i], b[i], epsilon, tolerance=1e-6)
        np.testing.assert_allclose(solution.transport_cost[i], sharp, atol=2e-3)
        np.testing.assert_allclose(solution.regularised_cost[i], relative, atol=2e-3)
    assert solution.converged.sum() >= 3
    assert epsilon > 0.001 or (solution.domain > 0).all()


def test_the_domain_can_be_forced_and_gives_no_wrong_number():
    cost, a, b = problem(source=10, target=7, spread=3.0)
    forced = {
        domain: transport.solve(cost, a, b, epsilon=0.05, domain=domain)
        for domain in ("auto", *transport.DOMAINS)
    }
    solved_in = {domain: set(np.asarray(found.domain)) for domain, found in forced.items()}
    assert solved_in == {"auto": {0}, "kernel": {0}, "wide": {1}, "log": {2}}
    for solution in forced.values():
        np.testing.assert_allclose(
            solution.regularised_cost, forced["auto"].regularised_cost, rtol=1e-4
        )
    beyond = transport.solve(cost, a, b, epsilon=0.001, domain="kernel")
    assert jnp.isnan(beyond.transport_cost).any()
    np.testing.assert_array_equal(jnp.isnan(beyond.transport_cost) & beyond.converged, False)


def test_a_wide_domain_is_refused_where_doubles_are_no_wider(monkeypatch):
    cost, a, b = problem()
    monkeypatch.setattr(domains, "_WIDE_BACKENDS", ())
    with pytest.raises(checks.InputError, match='"wide" needs float64'):
        transport.solve(cost, a, b, epsilon=0.1, domain="wide")


def test_t11_and_t12_one_trace_serves_every_call_and_every_epsilon():
    cost, a, b = problem(source=4, target=3)
    transport.solve(cost, a, b, epsilon=0.1)
    traces = domains.solve._cache_size()
    for epsilon in (0.2, 0.3, jnp.asarray(0.4)):
        transport.solve(cost, a, b, epsilon=epsilon)
    assert domains.solve._cache_size() == traces


def test_t13_products_run_at_the_highest_precision():
    cost, a, b = problem()
    program = str(jax.make_jaxpr(lambda x: transport.solve(cost, x, b, epsilon=0.1))(a))
    assert "dot_general" in program
    assert program.count("dot_general[") == program.count("Precision.HIGHEST, Precision.HIGHEST")


@pytest.mark.slow
def test_t14_the_sharp_cost_ranks_and_more_labels_are_no_merit():
    """A perfect teacher with ever finer labels must not look better or worse."""
    truth_ = jax.nn.softmax(jax.random.normal(jax.random.key(0), (6, 5)))
    values = []
    for finer in (1, 4):
        cost = jnp.repeat(1.0 - jnp.eye(5), finer, axis=0)
        source = jnp.repeat(truth_ / finer, finer, axis=1)
        solution = transport.solve(cost, source, truth_, epsilon=0.2, threshold=1e-5)
        plain = transport.transport_cost(cost, source, truth_, epsilon=0.2)
        values.append((solution.transport_cost, solution.regularised_cost, plain))
    for k in (0, 1):
        np.testing.assert_allclose(values[0][k], values[1][k], atol=1e-4)
    assert (values[1][2] < values[0][2] - 0.1).all()  # "plain" would reward the finer teacher
    assert (values[0][1] > 0.1).all()  # and the regularised cost to oneself is no distance


def test_t15_the_default_threshold_leaves_the_gradient_within_a_per_cent():
    cost, a, b = problem(batch=6)

    def gradient(threshold):
        return jax.grad(
            lambda y: transport.transport_cost(cost, a, y, epsilon=0.05, threshold=threshold).sum()
        )(b)

    loose, tight = (x - x.mean(axis=-1, keepdims=True) for x in (gradient(1e-3), gradient(1e-6)))
    assert jnp.abs(loose - tight).max() < 0.01 * jnp.abs(tight).max()


def test_t16_a_hard_example_in_the_batch_spoils_no_other_and_all_is_jittable():
    cost, a, b = problem()
    hard = (
        a.at[0].set(jnp.eye(7)[0] * (1 - 6e-6) + 1e-6),
        b.at[0].set(jnp.eye(5)[4] * (1 - 4e-6) + 1e-6),
    )
    together = jax.jit(lambda x, y: transport.solve(cost, x, y, epsilon=0.02))(*hard)
    alone = transport.solve(cost, a[1:], b[1:], epsilon=0.02)
    np.testing.assert_allclose(
        together.transport_cost[1:], alone.transport_cost, rtol=5e-3, atol=1e-4
    )


@pytest.mark.parametrize("domain", ["kernel", "wide"])
def test_t16_what_is_done_rests_to_the_bit(domain):
    """However long the others take: an easy example beside easy and beside hard ones."""
    cost, a, b = problem(batch=8, source=30, target=20, spread=0.1)
    _, hard, onto = problem(seed=1, batch=8, source=30, target=20, spread=2.0)
    found = [
        transport.solve(
            cost,
            jnp.concatenate([a[:4], others]),
            jnp.concatenate([b[:4], theirs]),
            epsilon=0.02,
            domain=domain,
        )
        for others, theirs in ((a[4:], b[4:]), (hard[4:], onto[4:]))
    ]
    assert found[0].iterations.max() < found[1].iterations.max()
    for name in ("transport_cost", "regularised_cost", "source_potential", "iterations"):
        np.testing.assert_array_equal(*(getattr(one, name)[:4] for one in found))


def test_leep_predictor_is_the_minimiser_of_the_plain_cost():
    """METHODS: with the student marginal free, "plain" is least at sum_s p(s|x) softmin."""
    cost, a, _ = problem()
    target = costs.predictor(cost, a, epsilon=0.3)
    logits = jnp.log(target)
    gradient = jax.grad(
        lambda z: transport.transport_cost(
            cost, a, jax.nn.softmax(z), epsilon=0.3, threshold=1e-6
        ).sum()
    )(logits)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_no_array_of_batch_times_source_times_target_is_stored():
    cost, a, b = problem(batch=512, source=100, target=100)
    program = jax.jit(lambda x, y: transport.solve(cost, x, y, epsilon=0.1)).lower(a, b).compile()
    # Working arrays of the size of the marginals, and some plans of the log domain.
    held = 6 * (a.nbytes + b.nbytes) + 32 * min(domains._ways()["log"].numbers, 512 * 100 * 100)
    assert program.memory_analysis().temp_size_in_bytes < held
