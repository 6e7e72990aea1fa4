"""Plain PyTorch forms of the distillation losses: the yardstick of `benchmarks.losses`.

Typed here from the formulas, each the way one writes it without thought of speed but with matrix
products where there are any: the public code broadcasts in nst and fsp, which is slower. Each takes
the trees of `_loss_cases` as tensors, maps being channels first, and returns a scalar.
"""

import functools
import importlib
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks import _loss_cases, _timing

torch: Any = importlib.import_module("torch")
F: Any = importlib.import_module("torch.nn.functional")

Tree = Mapping[str, Any]
Tensor = Any


def pools() -> list[ProcessPoolExecutor]:
    """A process in which PyTorch computes with one thread, and one with all there are.

    Its threads may wait for each other longer than one alone would work. A count that changes
    within a process was seen to leave it waiting for ever.
    """
    spawn = multiprocessing.get_context("spawn")
    return [
        ProcessPoolExecutor(1, spawn, initializer=torch.set_num_threads, initargs=(count,))
        for count in (1, torch.get_num_threads())
    ]


def measure(name: str, sizes: _loss_cases.Sizes, settings: Mapping[str, Any]) -> float:
    """Median seconds of value and gradient of one of `LOSSES`.

    Args:
        name: Of the loss.
        sizes: Of its arrays.
        settings: Of `_timing.measure`.
    """
    case = _cases(sizes)[name]
    trained = as_tensors(case.trained, trained=True)
    teacher = as_tensors(case.teacher, trained=False)
    return _timing.measure(lambda: graded(LOSSES[name], trained, teacher), **settings).seconds


_cases = functools.cache(_loss_cases.cases)


def as_tensors(tree: Any, *, trained: bool) -> Any:
    """A tree of arrays as tensors, maps channels first, whole numbers as PyTorch indexes by."""
    if isinstance(tree, Mapping):
        return {key: as_tensors(leaf, trained=trained) for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [as_tensors(leaf, trained=trained) for leaf in tree]
    array = np.array(tree)
    if array.ndim == 4:
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if np.issubdtype(array.dtype, np.integer):
        return torch.from_numpy(array.astype(np.int64))
    return torch.from_numpy(array).requires_grad_(trained)


def leaves(tree: Any) -> list[Tensor]:
    """Tensors of a tree, in the order of JAX: a mapping's by its keys."""
    if isinstance(tree, Mapping):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, list):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]


def graded(loss: Callable[[Tree, Tree], Tensor], trained: Tree, teacher: Tree) -> tuple[Any, ...]:
    """A loss and its gradients."""
    value = loss(trained, teacher)
    return value, *torch.autograd.grad(value, leaves(trained))


def kd(trained: Tree, teacher: Tree, temperature: float = 4.0) -> Tensor:
    """Hinton's distillation."""
    own = F.log_softmax(trained["logits"] / temperature, dim=1)
    given = F.softmax(teacher["logits"] / temperature, dim=1)
    return temperature**2 * F.kl_div(own, given, reduction="sum") / len(own)


def hint(trained: Tree, teacher: Tree) -> Tensor:
    """FitNets."""
    return F.mse_loss(trained["map"], teacher["map"])


def _activity(maps: Tensor) -> Tensor:
    return F.normalize(maps.pow(2).mean(dim=1).flatten(1))


def attention(trained: Tree, teacher: Tree) -> Tensor:
    """Attention transfer."""
    pairs = zip(trained["maps"], teacher["maps"], strict=True)
    return sum((_activity(own) - _activity(given)).pow(2).mean() for own, given in pairs)


def factor(trained: Tree, teacher: Tree) -> Tensor:
    """Factor transfer."""
    return (_activity(trained["map"]) - _activity(teacher["map"])).abs().mean()


def similarity(trained: Tree, teacher: Tree) -> Tensor:
    """Similarity preserving."""

    def similarities(maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        return F.normalize(flat @ flat.t())

    gap = similarities(trained["map"]) - similarities(teacher["map"])
    return gap.pow(2).sum() / len(gap) ** 2


def correlation(trained: Tree, teacher: Tree) -> Tensor:
    """Correlation congruence."""
    gap = (trained["features"] - teacher["features"]).abs()
    return (gap[:-1] * gap[1:]).sum(dim=1).mean()


def vid(trained: Tree, teacher: Tree) -> Tensor:
    """Variational information."""
    total = 0.0
    for own, given, layer in zip(
        trained["maps"], teacher["maps"], trained["regressors"], strict=True
    ):
        predicted = own
        for place, kernel in enumerate(layer["kernels"]):
            predicted = F.relu(predicted) if place > 0 else predicted
            predicted = F.conv2d(predicted, kernel.t()[:, :, None, None])
        variance = (F.softplus(layer["log_scale"]) + 1e-5).view(1, -1, 1, 1)
        total = total + 0.5 * ((predicted - given).pow(2) / variance + variance.log()).mean()
    return total


def _distances(features: Tensor) -> Tensor:
    square = features.pow(2).sum(dim=1)
    found = square[:, None] + square - 2 * features @ features.t()
    found = found.clamp(min=1e-12).sqrt()
    found = found * (1 - torch.eye(len(found), device=found.device))
    return found / found[found > 0].mean()


def _angles(features: Tensor) -> Tensor:
    sides = F.normalize(features[None] - features[:, None], dim=2)
    return torch.bmm(sides, sides.transpose(1, 2)).view(-1)


def rkd(trained: Tree, teacher: Tree) -> Tensor:
    """Relational distillation."""
    own, given = trained["features"], teacher["features"]
    with torch.no_grad():
        distances, angles = _distances(given), _angles(given)
    return 25 * F.smooth_l1_loss(_distances(own), distances) + 50 * F.smooth_l1_loss(
        _angles(own), angles
    )


def pkt(trained: Tree, teacher: Tree, epsilon: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer."""

    def probabilities(features: Tensor) -> Tensor:
        direction = features / (features.pow(2).sum(dim=1, keepdim=True).sqrt() + epsilon)
        kernel = (direction @ direction.t() + 1) / 2
        return kernel / kernel.sum(dim=1, keepdim=True)

    got, wanted = probabilities(trained["features"]), probabilities(teacher["features"])
    return (wanted * ((wanted + epsilon) / (got + epsilon)).log()).mean()


def abound(trained: Tree, teacher: Tree, margin: float = 1.0) -> Tensor:
    """Activation boundaries."""
    pairs = list(zip(trained["maps"], teacher["maps"], strict=True))
    total = 0.0
    for place, (own, given) in enumerate(pairs):
        above = ((own + margin).pow(2) * ((own > -margin) & (given <= 0)).float()).sum()
        below = ((own - margin).pow(2) * ((own <= margin) & (given > 0)).float()).sum()
        total = total + 2.0 ** (place - len(pairs) + 1) * (above + below)
    return 3 / 1000 * total / len(trained["maps"][0])


def fsp(trained: Tree, teacher: Tree) -> Tensor:
    """Flow of solution procedure."""

    def flow(before: Tensor, after: Tensor) -> Tensor:
        before = F.adaptive_avg_pool2d(before, after.shape[-2:]).flatten(2)
        after = after.flatten(2)
        return torch.bmm(before, after.transpose(1, 2)) / after.shape[-1]

    steps = zip(pairwise(trained["maps"]), pairwise(teacher["maps"]), strict=True)
    return sum((flow(*own) - flow(*given)).pow(2).mean() for own, given in steps)


def nst(trained: Tree, teacher: Tree) -> Tensor:
    """Neuron selectivity transfer."""

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        return torch.bmm(one, other.transpose(1, 2)).pow(2).mean()

    total = 0.0
    for maps in zip(trained["maps"], teacher["maps"], strict=True):
        own, given = (F.normalize(each.flatten(2), dim=2) for each in maps)
        total = total + kernel(given, given) + kernel(own, own) - 2 * kernel(own, given)
    return total


def kdsvd(trained: Tree, teacher: Tree, count: int = 1) -> Tensor:
    """Singular vectors."""

    def directions(maps: Tensor) -> tuple[Tensor, Tensor]:
        _, values, vectors = torch.linalg.svd(maps.flatten(2).transpose(1, 2), full_matrices=False)
        return values, vectors.transpose(1, 2)

    before: Any = None
    total = 0.0
    for own_map, given_map in zip(trained["maps"], teacher["maps"], strict=True):
        with torch.no_grad():
            values, given = directions(given_map)
            values = F.normalize(values[:, :count], dim=1)[:, None]
            given = given[:, :, :count]
            # As in our loss; the public code leaves the sign to the linear algebra.
            given = torch.where(given.sum(dim=1, keepdim=True) < 0, -given, given)
        _, own = directions(own_map)
        cosine = torch.bmm(own[:, :, : count + 3].transpose(1, 2), given)
        nearest = cosine.abs().argmax(dim=1, keepdim=True)
        sign = cosine.gather(1, nearest).sign()
        own = sign * own.gather(2, nearest.expand(-1, own.shape[1], -1))
        own, given = own * values, given * values
        if before is not None:
            related = [
                torch.exp(-((after[:, :, None] - first[:, None]) ** 2) / 8)
                for first, after in zip(before, (own, given), strict=True)
            ]
            total = total + (related[0] - related[1]).pow(2).sum() / len(own)
        before = own, given
    return total


def crd(trained: Tree, teacher: Tree, temperature: float = 0.07, momentum: float = 0.5) -> Tensor:
    """CRD with its memory bank, which is moved in place, candidates and constants being given."""
    own = F.normalize(
        trained["features"] @ trained["student"]["kernel"] + trained["student"]["bias"]
    )
    given = F.normalize(
        teacher["features"] @ trained["teacher"]["kernel"] + trained["teacher"]["bias"]
    )
    candidates, rows = teacher["candidates"], teacher["indices"]
    negatives, examples = candidates.shape[1] - 1, len(teacher["banks"][0])

    def contrast(bank: Tensor, anchors: Tensor, log_normaliser: Tensor) -> Tensor:
        chosen = bank.index_select(0, candidates.reshape(-1)).view(*candidates.shape, -1)
        logits = torch.bmm(chosen, anchors[:, :, None])[..., 0] / temperature
        scores = (logits - log_normaliser).exp()
        noise = negatives / examples
        positive = (scores[:, 0] / (scores[:, 0] + noise + 1e-7)).log().sum()
        negative = (noise / (scores[:, 1:] + noise + 1e-7)).log().sum()
        return -(positive + negative) / len(anchors)

    banks, constants = teacher["banks"], teacher["log_normalisers"]
    value = contrast(banks[1], own, constants[0]) + contrast(banks[0], given, constants[1])
    with torch.no_grad():
        for bank, new in zip(banks, (own, given), strict=True):
            moved = momentum * bank.index_select(0, rows) + (1 - momentum) * new
            bank.index_copy_(0, rows, F.normalize(moved))
    return value


LOSSES: dict[str, Callable[..., Tensor]] = {
    each.__name__: each
    for each in (
        *(kd, hint, attention, similarity, correlation, vid, rkd, pkt),
        *(abound, factor, fsp, nst, kdsvd, crd),
    )
}
"""By the names of `fdjax.objectives.OBJECTIVES`."""
