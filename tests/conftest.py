"""Settings that hold for every test."""

from collections.abc import Iterator

import jax
import pytest

# Four simulated devices for the tests of sharding; it must be said before jax is first used.
jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision while the test runs."""
    with jax.enable_x64():
        yield
