"""The benchmark of training steps on a tiny network and batch."""

import json
import subprocess
import sys

import pytest

from benchmarks import steps


@pytest.mark.slow
def test_every_step_is_timed_beside_plain_distillation(tmp_path):
    out = tmp_path / "steps.json"
    sizes = {"batch": 8, "labelled": 4, "classes": 3, "teacher_labels": 5, "size": 8, "features": 4}
    entry = steps.run(steps.Config(**sizes, repeats=2, out=str(out)))
    rows = json.loads(out.read_text())["rows"]
    assert [row["objective"] for row in rows] == [row["objective"] for row in entry["rows"]]
    assert rows[0]["objective"] == "kd" and rows[0]["ratio"] == 1.0
    assert {"transport", "reference", "reference, 3 teachers"} <= {r["objective"] for r in rows}
    assert all(row["milliseconds"] > 0 for row in rows)


@pytest.mark.slow
def test_the_command_explains_its_flags():
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.steps", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "teacher_labels" in found.stdout and "JSON file" in found.stdout
