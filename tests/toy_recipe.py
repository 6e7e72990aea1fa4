"""Flags of the experiments in one label space on a data set file of a few tiny images."""

from test_experiments import write_npz

from fdjax import data


def make(folder, *, channels=3, classes=4):
    """Flags that train two-layer networks for a few steps."""
    task = data.synthetic(
        num_classes=classes,
        height=6,
        width=6,
        channels=channels,
        train_per_class=20,
        test_per_class=10,
        noise=0.3,
    )
    return {
        "dataset": str(write_npz(folder / "toy.npz", task)),
        "student": "mlp",
        "epochs": 2,
        "batch_size": 16,
        "seeds": 2,
    }
