"""One question a module; each runs as `python -m experiments.NAME` or by its `run(Config)`."""
