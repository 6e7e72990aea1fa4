"""The benchmark of the scores on a tiny faculty."""

import json

import numpy as np
import oracle_files
import pytest

from benchmarks import _logme
from benchmarks import scores as benchmark
from fdjax.checks import InputError

SIZES = {"teachers": 5, "examples": 30, "most_labels": 14, "classes": 3, "features": 6}


@pytest.mark.slow
def test_every_score_is_timed_and_padding_moves_none(tmp_path):
    out = tmp_path / "scores.json"
    few = ("transport", "leep", "hscore", "knn", "logme")
    config = benchmark.Config(**SIZES, scores=few, reference=3, repeats=2, out=str(out))
    benchmark.run(config)
    found = json.loads(out.read_text())
    assert [row["score"] for row in found["rows"]] == list(few)
    assert all(row["seconds"] > 0 and row["moved by padding"] < 1e-5 for row in found["rows"])
    assert len(found["claims"]) == 3 and found["claims"][0]["claim"] == "transport < 2 s"
    assert found["reference"]["ours above it, least"] > -1e-5
    with pytest.raises(InputError, match="`scores` must be one of"):
        benchmark.run(benchmark.Config(**SIZES, scores=("luck",)))


@pytest.mark.parametrize("name", ["t01", "t10_many"])
def test_the_reference_is_the_authors(name):
    data = oracle_files.load(f"transfer/{name}")
    labels = data["labels"]
    found = _logme.logme(data["features"], labels, int(labels.max()) + 1)
    np.testing.assert_allclose(found, data["logme_fixed_point"], rtol=1e-6)
