"""One question a module; each runs as `python -m experiments.NAME` or by its `run(Config)`."""

import os

# The threads of LAPACK's own library wait for work by spinning, in the way of XLA's. The library
# reads this where it is loaded: before JAX is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
