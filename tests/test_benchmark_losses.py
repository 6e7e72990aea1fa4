"""The benchmark of losses on tiny sizes, and its yardstick against our losses."""

import json

import jax
import numpy as np
import pytest

from benchmarks import _loss_cases, _method_steps, losses
from fdjax import checks

SIZES = _loss_cases.Sizes(
    batch=6,
    maps=((8, 8, 3), (4, 4, 4), (2, 2, 5)),
    classes=4,
    embedding=8,
    examples=40,
    negatives=7,
)


@pytest.mark.slow
def test_pytorch_computes_the_same():
    """Values, gradients, and the banks after the step."""
    peers = pytest.importorskip("benchmarks._torch_losses")
    for name, case in _loss_cases.cases(SIZES).items():
        if name not in peers.LOSSES:
            continue
        remembers = name == "crd"
        graded = jax.jit(jax.value_and_grad(case.loss, has_aux=remembers))
        value, gradient = graded(case.trained, case.teacher)
        trained = peers.as_tensors(case.trained, trained=True)
        teacher = peers.as_tensors(case.teacher, trained=False)
        theirs, *gradients = peers.graded(peers.LOSSES[name], trained, teacher)
        if remembers:
            value, banks = value
            for own, other in zip(banks, teacher["banks"], strict=True):
                np.testing.assert_allclose(own, other, atol=1e-5)
        np.testing.assert_allclose(value, theirs.detach(), rtol=1e-4, err_msg=name)
        ours = peers.leaves(peers.as_tensors(gradient, trained=False))
        for own, other in zip(ours, gradients, strict=True):
            scale = float(other.abs().max())
            np.testing.assert_allclose(own, other, atol=2e-3 * scale, err_msg=name)


@pytest.mark.slow
def test_every_suite_writes_its_rows(tmp_path):
    out = tmp_path / "losses.json"
    config = losses.Config(sizes=SIZES, repeats=2, budget=0.01, out=str(out))
    found = losses.run(config)
    assert {row["loss"] for row in found["rows"]} == set(_loss_cases.cases(SIZES))
    assert all(row["milliseconds"] > 0 for row in json.loads(out.read_text())["rows"])
    assert "| crd" in out.with_suffix(".md").read_text()
    pair = _method_steps.Pair("convnet", "convnet", ("crd+kd", "abound, first stage"), size=8)
    rows = losses.run(config._replace(suite="steps", steps=pair))["rows"]
    assert [row["method"] for row in rows] == ["alone", _method_steps.LIVE, *pair.methods]
    assert rows[0]["ratio"] == 1.0
    pair = pair._replace(methods=("kd",))
    rows = losses.run(config._replace(suite="throughput", steps=pair, peak=1.0))["rows"]
    assert rows[0]["images a second"] > 0 and 0 < rows[0]["share of the peak"] < 1
    with pytest.raises(checks.InputError, match="`suite` must be one of"):
        losses.run(config._replace(suite="luck"))
