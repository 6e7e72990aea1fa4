"""The cases of the transport benchmark, and what the numbers of its claims must show."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import _answers, _problems
from fdjax.transport import Domain

ALL = ("ott", "ott_fixed", "pot_batch", "pot_loop", "pot_exact", "roof", "torch")
_JAX = ("ott", "ott_fixed")
_SIZES = ((10, 10), (100, 10), (100, 100), (1000, 100), (1000, 1000))
_EPSILONS = (0.5, 0.1, 0.05, 0.02, 0.005)
FLAT, PEAKED = 1.0, 5.0


class Case(NamedTuple):
    """Problems of one shape; the fields are those of `transport.Config`."""

    source: int
    target: int
    batch: int
    faculty: int
    epsilon_ratio: float
    spread: float
    domain: Domain
    peers: tuple[str, ...]

    @property
    def title(self) -> str:
        """What tells this case from the others."""
        kind = "flat" if self.spread == FLAT else "peaked"
        forced = "" if self.domain == "auto" else f", {self.domain} domain"
        return (
            f"{self.source} x {self.target}, batch {self.batch}, faculty {self.faculty}, "
            f"epsilon {self.epsilon_ratio:g} of the mean cost, {kind} teachers{forced}"
        )

    def problem(self, seed: int) -> _problems.Problem:
        """Its random problems."""
        return _problems.random(
            source=self.source,
            target=self.target,
            batch=self.batch,
            faculty=self.faculty,
            spread=self.spread,
            epsilon_ratio=self.epsilon_ratio,
            seed=seed,
        )


def case(source: int, target: int, epsilon_ratio: float, **changes: Any) -> Case:
    """A case that is ordinary (batch 1,024, one flat teacher, no peers) but for `changes`."""
    plain = Case(source, target, 1024, 1, epsilon_ratio, FLAT, "auto", ())
    return plain._replace(**changes)


def grid() -> tuple[Case, ...]:
    """Every size at every epsilon; every batch, faculty and spread at every size that fits.

    Of 1000 x 1000 there are 64 problems, as a thousand would only take longer. A faculty
    has 64 examples a teacher, and at most 100 x 100 labels. What most tells problems apart
    comes first, should the run be stopped.
    """

    def usual(size: tuple[int, int]) -> int:
        return 64 if size == (1000, 1000) else 1024

    def every(epsilon: float, **changes: Any) -> list[Case]:
        return [case(*size, epsilon, **{"batch": usual(size)} | changes) for size in _SIZES]

    cases = [one for epsilon in _EPSILONS for one in every(epsilon)]
    cases += [one for epsilon in (0.1, 0.02) for one in every(epsilon, spread=PEAKED)]
    for faculty in (16, 256):
        cases += [one for one in every(0.05, batch=64, faculty=faculty) if one.source <= 100]
    for batch in (64, 4096):
        cases += [one for one in every(0.05, batch=batch) if one.target < 1000]
    return tuple(one._replace(peers=_JAX) for one in cases)


CLAIMS = (
    case(100, 100, 0.02, peers=ALL),
    case(1000, 100, 0.02, peers=("roof",)),
    case(100, 100, 0.02, domain="log"),
    case(1000, 100, 0.02, domain="log"),
    case(100, 100, 0.02, spread=PEAKED, peers=("ott", "ott_fixed", "pot_exact")),
    case(100, 100, 0.005, peers=("ott", "ott_fixed", "pot_exact")),
    case(100, 100, 0.02, domain="wide"),
    case(1000, 100, 0.02, domain="wide"),
    case(100, 100, 0.005, spread=PEAKED, peers=("ott_fixed", "pot_exact")),
    case(100, 100, 0.02, domain="kernel"),
    case(1000, 100, 0.02, domain="kernel"),
)

SUITES: dict[str, Callable[[], tuple[Case, ...]]] = {"claims": lambda: CLAIMS, "grid": grid}


def overview(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a measured case: ours, and how many times as long each peer took.

    A peer that did not converge took at least as long.
    """

    def longer(row: Mapping[str, Any]) -> float | str:
        return f"> {row['ratio']:.0f}" if _answers.NOT_CONVERGED in row["note"] else row["ratio"]

    rows = []
    for place, case in enumerate(cases):
        peers = _rows(cases, place)
        ours = peers.pop("ours", {})
        rows.append(
            {"case": case["title"].replace(" of the mean cost", "").removesuffix(" teachers")}
            | {name: ours.get(name) for name in _OVERVIEW}
            | {name: longer(row) for name, row in peers.items()}
            | {"note": ours.get("note")}
        )
    return rows


_OVERVIEW = (
    *("seconds", "problems_per_second", "iterations", "mode", "marginal_error"),
    *("call_of_square", "call_of_pair", "gradient_ratio"),
)


def _rows(cases: Sequence[Mapping[str, Any]], place: int) -> dict[str, Mapping[str, Any]]:
    return {row["solver"]: row for row in cases[place]["rows"]}


def verdicts(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was asked of the cases of `CLAIMS`, what was measured, and whether it is met.

    Args:
        cases: Measured, in the order of `CLAIMS`.

    Returns:
        One row a claim; `met` is None where nothing was measured, and the reason stands in
        `measured`.
    """
    found = []
    speeds = {"ott": 80.0, "ott_fixed": 2.0, "pot_batch": 20.0, "pot_exact": 20.0}
    for place in (0, 4, 5, 8):
        first = _rows(cases, place)
        asked = CLAIMS[place]
        kind = "flat" if asked.spread == FLAT else "peaked"
        for peer in [peer for peer in speeds if peer in asked.peers]:
            claim = f"100 x 100, epsilon {asked.epsilon_ratio:g}, {kind}: times as fast as {peer}"
            ready = {"ours", peer} <= first.keys()
            measured = first[peer]["ratio"] if ready else "left out"
            found.append(_verdict(claim, speeds[peer], measured, above=True))
    shares = (
        *(("auto", 0, 0.6), ("auto", 1, 0.8), ("kernel", 9, 0.6), ("kernel", 10, 0.8)),
        *(("wide", 6, 0.4), ("wide", 7, 0.6), ("log", 2, 0.4), ("log", 3, 0.6)),
    )
    against = {
        "auto": ("square", "pair"),
        "kernel": ("square", "pair"),
        "wide": ("pair", "double"),
        "log": ("pair", "vectors"),
    }
    for domain, place, least in shares:
        row = _rows(cases, place).get("ours")
        asked = CLAIMS[place]
        where = f"{asked.source} x {asked.target}, epsilon {asked.epsilon_ratio:g}, {domain} domain"
        for yardstick in against[domain]:
            claim = f"{where}: whole call as a share of the {yardstick} rate"
            measured = "not run" if row is None else row[f"call_of_{yardstick}"]
            found.append(_verdict(claim, least, measured, above=True))
    for place in (0, 1):
        row = _rows(cases, place).get("ours", {"gradient_ratio": "not run"})
        claim = f"{CLAIMS[place].source} x {CLAIMS[place].target}: forward + gradient over forward"
        found.append(_verdict(claim, 1.2, row["gradient_ratio"], above=False))
    return found


def _verdict(claim: str, bound: float, measured: Any, *, above: bool) -> dict[str, Any]:
    number = isinstance(measured, float) and not math.isnan(measured)
    met = (measured >= bound if above else measured <= bound) if number else None
    asked = f"{'at least' if above else 'at most'} {bound:g}"
    return {"claim": claim, "asked": asked, "measured": measured, "met": met}
