"""Reports: exact text, valid pictures, whole files or none."""

import json
import math
import os
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import Image

from fdjax import checks, reports

ROWS = [
    {"teacher": "a|b", "score": 0.12345, "accuracy": "0.91 ± 0.02", "images": 50},
    {"teacher": "<c>\x1b[31m", "score": np.float32(-1e-7), "accuracy": "0.9 ± 0.1", "best": True},
    {"teacher": "d\u202ee\n", "score": math.nan, "accuracy": None, "images": np.int64(1200)},
]


def picture_size(path):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def test_table_is_exact():
    assert reports.table(ROWS) == (
        "| teacher      |     score |    accuracy | images | best |\n"
        "| ------------ | --------: | ----------: | -----: | ---- |\n"
        "| a\\|b         |     0.123 | 0.91 ± 0.02 |     50 | -    |\n"
        "| \\<c>\\x1b[31m | -1.00e-07 |   0.9 ± 0.1 |      - | yes  |\n"
        "| d\\u202ee\\n   |         - |           - |   1200 | -    |\n"
    )


def test_table_takes_columns_in_order_and_digits():
    assert reports.table(ROWS[:1], columns=["images", "score"], digits=1) == (
        "| images | score |\n| -----: | ----: |\n|     50 |   0.1 |\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (-0.5, "-0.500"),
        (-46950.148, "-46950"),
        (1e6, "1.00e+06"),
        (0.00099, "9.90e-04"),
        (math.inf, "inf"),
        (jnp.float32(0.25), "0.250"),
        (7, "7"),
        (False, "no"),
        (None, "-"),
    ],
)
def test_cells(value, text):
    assert reports.table([{"x": value}]).splitlines()[-1].strip("| ") == text


def test_numbers_stand_right_and_names_left():
    def rule(value):
        return reports.table([{"column": value}]).splitlines()[1]

    for number in ("12.5x", "35 %", "0.9 ± 0.1", "1.5e-07", 3, 0.5):
        assert rule(number).endswith(": |")
    for name in ("3 teachers", "resnet", "1.2.x", ""):
        assert rule(name).endswith("- |")


def test_table_refuses_nothing_and_unknown_columns():
    with pytest.raises(checks.InputError, match="`rows` is empty"):
        reports.table([])
    with pytest.raises(checks.InputError, match="must be one of teacher, score"):
        reports.table(ROWS, columns=["scores"])


def test_print_table_shows_names_literally(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    reports.print_table([{"teacher": "[red]x\x1b[31m", "score": 0.5}], "A [b]title")
    printed = capsys.readouterr().out
    assert "A [b]title" in printed
    assert "[red]x\\x1b[31m" in printed
    assert "0.500" in printed
    assert "\x1b" not in printed


class Pair(NamedTuple):
    mean: object
    seeds: object


def test_json_holds_numbers_of_every_make(tmp_path):
    tree = {
        "numpy": np.float32(0.5),
        "nan": math.nan,
        "array": np.array([[1.0, np.inf], [np.nan, 2.0]]),
        "jax": jnp.arange(3),
        "pair": Pair(np.int64(3), (1, 2)),
        "path": pathlib.Path("a") / "b",
        "text": "é",
        "none": None,
        3: True,
    }
    path = reports.write_json(tmp_path / "new" / "results.json", tree)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "numpy": 0.5,
        "nan": None,
        "array": [[1.0, None], [None, 2.0]],
        "jax": [0, 1, 2],
        "pair": {"mean": 3, "seeds": [1, 2]},
        "path": os.path.join("a", "b"),
        "text": "é",
        "none": None,
        "3": True,
    }


def test_json_failure_names_the_place_and_leaves_the_old_file(tmp_path):
    path = reports.write_json(tmp_path / "results.json", {"old": 1})
    with pytest.raises(checks.InputError, match=r"`tree.a\[1\].b` is a set"):
        reports.write_json(path, {"a": [0, {"b": {1}}]})
    assert json.loads(path.read_text()) == {"old": 1}


def test_interrupted_writes_leave_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = reports.write_json(tmp_path / "results.json", {"old": 1})
    report = reports.write(tmp_path, "Old", ["text"])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    for attempt in (
        lambda: reports.write_json(path, {"new": 2}),
        lambda: reports.write(tmp_path, "New", ["text"]),
        lambda: reports.plot_curves(tmp_path / "curves.png", {"a": [(0, 1.0)]}, "accuracy"),
    ):
        with pytest.raises(checks.InputError, match=r"cannot write to .*\(disk full\)"):
            attempt()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert report.name in before


def test_write_links_pictures_relative_to_the_report(tmp_path):
    picture = reports.plot_curves(tmp_path / "plots" / "loss_curve.png", {"a": [(0, 1.0)]}, "loss")
    sections = ["## Scores\n\n| a |\n", pathlib.Path("plots", "loss_curve.png"), picture]
    report = reports.write(tmp_path, "Which\x1b teacher", sections)
    link = "![loss curve](<plots/loss_curve.png>)"
    expected = f"# Which\\x1b teacher\n\n## Scores\n\n| a |\n\n{link}\n\n{link}\n"
    assert report == tmp_path / "report.md"
    assert report.read_text(encoding="utf-8") == expected


def test_write_refuses_pictures_that_the_report_cannot_show(tmp_path):
    outside = tmp_path / "other.png"
    outside.write_bytes(b"")
    with pytest.raises(checks.InputError, match="outside"):
        reports.write(tmp_path / "run", "Title", [outside])
    with pytest.raises(checks.InputError, match="missing; plot it first"):
        reports.write(tmp_path / "run", "Title", [pathlib.Path("scores.png")])
    assert not (tmp_path / "run" / "report.md").exists()


def test_ranking_pictures(tmp_path):
    names = [
        "mnist {0..4}",
        "price $5 or $6",
        "a very long name of a teacher that is cut",
        "nan\x1b",
    ]
    scores = {"transport": jnp.array([-0.1, -0.1, -0.3, jnp.nan]), "knn": [0.9, 0.8, 0.1, 0.2]}
    achieved = np.array([0.9, 0.9, 0.5, 0.7])
    bars = reports.plot_ranking(tmp_path / "bars.png", names, scores["transport"])
    points = reports.plot_ranking(tmp_path / "points.png", names, scores, achieved)
    assert picture_size(points)[0] > picture_size(bars)[0]  # two panels against one


def test_names_of_a_ranking_cover_neither_points_nor_each_other():
    from matplotlib.text import Text

    from fdjax.reports import pictures

    figure = pictures._figure(6.0, 4.0)
    axes = figure.subplots()
    points = np.array([[0.0, 0.0], [0.02, 0.01], [0.03, 0.0], [1.0, 1.0], [0.98, 1.0]])
    axes.scatter(*points.T, s=34)
    axes.margins(0.14)
    pictures._write_names(axes, points, [f"teacher {row}" for row in range(len(points))])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(note) for note in axes.texts]
    centres = axes.transData.transform(points)
    for row, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[row + 1 :])
        assert not any(box.contains(*centre) for centre in centres)


def test_foretold_pictures(tmp_path):
    truth = {"a task": [0.1, 0.2, 0.0], "$another$": [0.0, 0.0]}
    one = {"a task": [3.0, math.nan, 1.0], "$another$": [math.nan, math.nan]}
    scores = {f"score {number}": one for number in range(6)}
    path = reports.plot_foretold(tmp_path / "six.png", scores, truth, ylabel="gain [points]")
    width, height = picture_size(path)
    few = reports.plot_foretold(tmp_path / "one.png", {"x": one}, truth, ylabel="gain")
    assert picture_size(few)[0] < width and picture_size(few)[1] < height
    with pytest.raises(checks.InputError, match="`scores` is empty"):
        reports.plot_foretold(tmp_path / "none.png", {}, truth, ylabel="gain")
    with pytest.raises(checks.InputError, match="a task"):
        short = {"x": {"a task": [1.0], "$another$": [1.0, 2.0]}}
        reports.plot_foretold(tmp_path / "none.png", short, truth, ylabel="gain")


def test_heat_maps_grow_with_their_classes_up_to_a_limit(tmp_path):
    def size(rows, columns, plot=reports.plot_cost):
        values = np.linspace(0, 1, rows * columns).reshape(rows, columns)
        path = tmp_path / "map.png"
        names = [f"class {row}" for row in range(max(rows, columns))]
        return picture_size(plot(path, values, names[:rows], names[:columns]))

    small, tall, huge = size(5, 3), size(100, 20), size(1000, 4)
    assert small[1] < tall[1] < huge[1] < 3200
    assert tall[1] > 100 * 20  # at 150 dots an inch a row of 20 dots holds a 7-point name
    assert size(5, 3, reports.plot_plan) == small


def test_heat_map_of_equal_and_missing_values(tmp_path):
    cost = [[0.5, math.nan], [0.5, 0.5]]
    picture_size(reports.plot_cost(tmp_path / "cost.png", cost, ["a", "b"], ["c", "d"]))


def test_curves_of_one_and_of_several_seeds(tmp_path):
    curves = {
        "transport": [(0, [0.1, 0.2]), (np.int64(10), np.array([0.5, 0.7]))],
        "alone": [(step, jnp.float32(0.1)) for step in range(30)],
    }
    narrow = reports.plot_curves(tmp_path / "a.png", curves, "accuracy [%]", xlabel="images")
    many = {f"objective {row}": curves["alone"] for row in range(9)}
    wide = reports.plot_curves(tmp_path / "b.png", many, "accuracy [%]")
    assert picture_size(wide)[0] > picture_size(narrow)[0]  # room for the names outside


def test_pictures_refuse_what_does_not_fit(tmp_path):
    path = tmp_path / "picture.png"
    with pytest.raises(checks.InputError, match=r"scores\['score'\]` must have shape \(2\)"):
        reports.plot_ranking(path, ["a", "b"], np.zeros(3))
    with pytest.raises(checks.InputError, match=r"`achieved` must have shape \(2\)"):
        reports.plot_ranking(path, ["a", "b"], np.zeros(2), np.zeros(3))
    with pytest.raises(checks.InputError, match="`names` is empty"):
        reports.plot_ranking(path, [], np.zeros(0))
    with pytest.raises(checks.InputError, match=r"`cost` must have shape \(1, 2\), got \(2, 1\)"):
        reports.plot_cost(path, np.zeros((2, 1)), ["a"], ["c", "d"])
    with pytest.raises(checks.InputError, match="`plan` must have shape"):
        reports.plot_plan(path, np.zeros((2, 1)), ["a"], ["c", "d"])
    with pytest.raises(checks.InputError, match="`curves` is empty"):
        reports.plot_curves(path, {}, "accuracy")
    with pytest.raises(checks.InputError, match=r"`curves\['a'\]` has no points"):
        reports.plot_curves(path, {"a": []}, "accuracy")
    assert not list(tmp_path.iterdir())


def test_pictures_leave_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    reports.plot_curves(tmp_path / "curves.png", {"a": [(0, 1.0)]}, "accuracy")
    assert dict(matplotlib.rcParams) == before
