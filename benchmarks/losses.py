"""What does each distillation loss cost, alone and in a training step?

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.losses --out=losses.json
    OPENBLAS_NUM_THREADS=1 python -m benchmarks.losses --suite=steps --out=loss_steps.json
    python -m benchmarks.losses --suite=throughput --teacher=resnet32x4 --student=resnet8x4 \
      --dtype=bfloat16 --augmentation=crop_flip --peak=989

The first command times value and gradient of each loss at the sizes of CIFAR networks: 64 images,
maps of 32x32x16, 16x16x32 and 8x8x64, for CRD 16,384 negatives of each image out of banks of
50,000 rows of 128. Beside it stands, where PyTorch is installed, a plain PyTorch form of the same
loss, timed in the same run on the same arrays; two claims are judged: no loss is slower than
PyTorch's, and CRD is at least twice as fast.

`--suite=steps` times one training step of a student by every method beside the step of a student
alone, the teacher running live, and `--suite=throughput` says how many images a second one pair
trains on by each of --methods, and what share that is of the device's peak: of --peak, in TFLOP/s,
if it is given, and of what one large matrix product reaches. The first command takes a
minute and a half on two cores.
"""

import contextlib
import importlib
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from absl import app, flags

from benchmarks import _loss_cases, _method_steps, _timing
from fdjax import checks, reports

TORCH_CLAIM, CRD_CLAIM = 1.0, 2.0
SUITES = ("alone", "steps", "throughput")


class Config(NamedTuple):
    """What is timed.

    Attributes:
        suite: One of `SUITES`.
        losses: To be timed alone; all if empty.
        sizes: Of the losses alone, and of batch and banks of the steps.
        steps: Networks and methods of the other two suites.
        peak: Of the device, in TFLOP/s; None if unknown.
        repeats: Timed calls of each; more where a call is short, fewer where it is long.
        budget: Seconds after which no further call of a loss starts.
        out: JSON file to write, and a Markdown file beside it.
    """

    suite: Literal["alone", "steps", "throughput"] = "alone"
    losses: tuple[str, ...] = ()
    sizes: _loss_cases.Sizes = _loss_cases.Sizes()
    steps: _method_steps.Pair = _method_steps.Pair()
    peak: float | None = None
    repeats: int = 10
    budget: float = 2.0
    out: str | None = None


def _ours(case: _loss_cases.Case, config: Config) -> tuple[float, float]:
    """Seconds to compile, and of one call; a bank gives itself away, as in training."""
    remembers = "banks" in case.teacher

    def graded(trained: Any, given: Any, banks: Any) -> Any:
        given = {**given, "banks": banks} if remembers else given
        return jax.value_and_grad(case.loss, has_aux=remembers)(trained, given)

    given = {key: leaf for key, leaf in case.teacher.items() if key != "banks"}
    banks = jax.tree.map(jax.numpy.copy, case.teacher.get("banks", []))
    start = time.perf_counter()
    step = jax.jit(graded, donate_argnums=2).lower(case.trained, given, banks).compile()
    compiling = time.perf_counter() - start

    def call() -> Any:
        nonlocal banks
        value, gradient = step(case.trained, given, banks)
        if remembers:
            value, banks = value
        return value, gradient, banks

    return compiling, _timing.measure(call, **_settings(config)).seconds


def _settings(config: Config) -> dict[str, Any]:
    """How each loss is timed."""
    return {
        "repeats": config.repeats,
        "budget": config.budget,
        "least": min(0.3, config.budget),
    }


def alone(config: Config) -> list[dict[str, Any]]:
    """A row for each loss."""
    try:
        peers: Any = importlib.import_module("benchmarks._torch_losses")
    except ModuleNotFoundError:
        print("no module torch; pip install torch for the column `torch`.")
        peers = None
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(pool) for pool in peers.pools()] if peers is not None else []
        return _rows(config, peers, pools)


def _rows(config: Config, peers: Any, pools: Sequence[Executor]) -> list[dict[str, Any]]:
    """The rows, PyTorch's time being the best that one of the pools needs."""
    rows = []
    cases = _loss_cases.cases(config.sizes)
    for name in config.losses or cases:
        checks.choice("losses", name, cases)
        compiling, seconds = _ours(cases[name], config)
        row = {"loss": name, "milliseconds": 1e3 * seconds, "compile_seconds": compiling}
        if peers is not None and name in peers.LOSSES:
            # One after the other: nobody else works while one is timed.
            other = min(
                pool.submit(peers.measure, name, config.sizes, _settings(config)).result()
                for pool in pools
            )
            row |= {"torch milliseconds": 1e3 * other, "torch / ours": other / seconds}
        rows.append(row)
    return rows


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked of the losses, where PyTorch was there to compare."""
    compared = [row for row in rows if "torch / ours" in row]
    found = []
    if compared:
        slowest = min(compared, key=lambda row: row["torch / ours"])
        found.append(_claim(f"every loss, the slowest {slowest['loss']}", slowest, TORCH_CLAIM))
    for row in compared:
        if row["loss"] == "crd":
            found.append(_claim("crd", row, CRD_CLAIM))
    return found


def _claim(text: str, row: dict[str, Any], asked: float) -> dict[str, Any]:
    reached = row["torch / ours"]
    return {
        "claim": f"{text}: at least {asked:g} times as fast as PyTorch",
        "reached": reached,
        "met": reached >= asked,
    }


def run(config: Config) -> dict[str, Any]:
    """Times one suite; prints, writes and returns the rows."""
    checks.choice("suite", config.suite, SUITES)
    entry = {**_timing.surroundings(), "settings": config._asdict()}
    if config.suite == "alone":
        rows = alone(config)
        entry |= {"rows": rows, "claims": claims(rows)}
    elif config.suite == "steps":
        entry |= {"rows": _method_steps.steps(config.steps, config.sizes, config.repeats)}
    else:
        rows = _method_steps.throughput(config.steps, config.sizes, config.repeats, config.peak)
        entry |= {"rows": rows}
    tables = [reports.table(entry[part]) for part in ("rows", "claims") if entry.get(part)]
    print("\n".join(tables))
    if config.out is not None:
        reports.write_json(config.out, entry)
        page = f"# Losses, suite `{config.suite}`\n\n{entry['date']}, {entry['processor']}\n\n"
        with reports.files.replacing(Path(config.out).with_suffix(".md")) as path:
            path.write_text(page + "\n".join(tables), encoding="utf-8")
    return entry


def define_flags() -> None:
    """Defines the flags; called from the command line only, so that importing changes nothing."""
    flags.DEFINE_enum("suite", "alone", list(SUITES), "See the first lines of the module.")
    flags.DEFINE_list("losses", [], "To be timed alone; all if empty.")
    flags.DEFINE_integer("batch", 64, "Images.", lower_bound=3)
    flags.DEFINE_integer("negatives", 16_384, "Of each image, in CRD.", lower_bound=1)
    flags.DEFINE_integer("examples", 50_000, "Rows of CRD's banks.", lower_bound=1)
    pair = _method_steps.Pair()
    flags.DEFINE_string("teacher", pair.teacher, "Network of the teacher.")
    flags.DEFINE_string("student", pair.student, "Network of the student.")
    flags.DEFINE_list(
        "methods", [], "Of the steps; all of them, or of the throughput crd, if empty."
    )
    flags.DEFINE_enum("dtype", pair.dtype, ["float32", "bfloat16"], "In which maps are computed.")
    flags.DEFINE_string("augmentation", pair.augmentation, "Random change of the images.")
    flags.DEFINE_integer("size", pair.size, "Side of the images in pixels.", lower_bound=4)
    flags.DEFINE_float("peak", None, "Of the device, in TFLOP/s.", lower_bound=0)
    flags.DEFINE_integer("repeats", 10, "Timed calls of each.", lower_bound=2)
    flags.DEFINE_string("out", None, "JSON file to write.")


def main(_: list[str]) -> None:
    """Runs the benchmark with the flags' values."""
    given = flags.FLAGS
    run(
        Config(
            suite=given.suite,
            losses=tuple(given.losses),
            sizes=_loss_cases.Sizes(
                batch=given.batch, examples=given.examples, negatives=given.negatives
            ),
            steps=_method_steps.Pair(
                teacher=given.teacher,
                student=given.student,
                methods=tuple(given.methods),
                dtype=given.dtype,
                augmentation=given.augmentation,
                size=given.size,
            ),
            peak=given.peak,
            repeats=given.repeats,
            out=given.out,
        )
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
