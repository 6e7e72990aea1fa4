"""The benchmark of the scores on a tiny faculty."""

import json

from benchmarks import scores as benchmark
from fdjax import scores


def test_every_score_is_timed_and_padding_moves_none(tmp_path, monkeypatch):
    few = {name: scores.SCORES[name] for name in ("transport", "leep", "hscore", "knn")}
    monkeypatch.setattr(scores, "SCORES", few)
    out = tmp_path / "scores.json"
    sizes = {"teachers": 5, "examples": 30, "most_labels": 14, "classes": 3, "features": 6}
    config = benchmark.Config(**sizes, teacher_batch=2, repeats=2, out=str(out))
    benchmark.run(config)
    rows = json.loads(out.read_text())["rows"]
    assert [row["score"] for row in rows] == list(scores.SCORES)
    assert all(row["seconds"] > 0 and row["moved by padding"] < 1e-5 for row in rows)
