"""Strict runs: 8 CPU devices, rank promotion raises, warnings are errors (pyproject)."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads wait by spinning
# What one test compiled another need not; workers and subprocesses share it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/zoo-tests-{os.getuid()}"
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets, or a skip that says how to name it."""
    folder = os.environ.get("ZOO_DATA")
    if not folder:
        pytest.skip("real data: set ZOO_DATA to the folder that holds amazon-beauty, tiktok, ...")
    return Path(folder)


@pytest.fixture(scope="module", autouse=True)
def executables_go_with_their_file():
    """A worker that keeps what hundreds of tests compiled runs out of maps, and its compiler dies
    of it."""
    yield
    jax.clear_caches()
