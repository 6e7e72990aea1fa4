"""The benchmarks of search and of devices, on tiny faculties."""

import json

import pytest

from benchmarks import devices, search


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clustered", "unstructured"])
def test_search_and_full_pass_agree_at_every_size(tmp_path, kind):
    out = tmp_path / "search.json"
    sizes = {"teachers": (50, 200), "fewest": 2, "most": 8, "classes": 4, "dimensions": 6}
    search.run(search.Config(faculty=kind, **sizes, tasks=2, k=3, out=str(out)))
    rows = json.loads(out.read_text())["rows"]
    assert [row["teachers"] for row in rows] == [50, 200]
    for row in rows:
        assert row["same answer"] and 0 < row["solved %"] <= 100 and row["full seconds"] > 0


def test_the_first_teachers_are_the_same_whatever_the_size():
    config = search.Config(most=24)
    world = search.make_world(config)
    few, many = (list(search.make_teachers(config, world, size)) for size in (3, 2003))
    assert len(many) == 2003
    for one, two in zip(few, many, strict=False):
        assert (one.vectors == two.vectors).all() and (one.masses == two.masses).all()


@pytest.mark.slow
def test_layouts_of_devices_give_the_same_scores(tmp_path):
    out = tmp_path / "devices.json"
    sizes = {"teachers": 5, "examples": 12, "classes": 3, "labels": 4, "features": 6}
    config = devices.Config(**sizes, repeats=2, scores=("leep",), out=str(out))
    devices.run(config, layouts=((1, 1), (1, 2), (2, 1)))
    rows = json.loads(out.read_text())["rows"]
    assert [(row["processes"], row["devices"]) for row in rows] == [(1, 1), (1, 2), (2, 2)]
    assert all(row["largest difference"] < 1e-5 and row["seconds"] > 0 for row in rows)
