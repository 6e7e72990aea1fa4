"""Numbers that public reference code gave on fixed inputs."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "oracles"


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of `tests/oracles/NAME.npz`, where NAME is `kind/item`."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)
