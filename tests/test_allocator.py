"""What JAX frees on a CPU stays with the process, and only where nobody else has said how."""

import os
import platform
import subprocess
import sys

import pytest

from zoo.allocator import keep_freed_memory

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the allocator that is told to keep is glibc's"
)
PROGRAM = """
import resource, sys
from zoo.allocator import keep_freed_memory
assert sys.argv[1] == "as it is" or keep_freed_memory()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: x + 1.0)
x = jnp.zeros((3500, 3500))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def ten_calls():
    before = faults()
    for _ in range(10):
        f(x).block_until_ready()
    return faults() - before
print(min(ten_calls() for _ in range(10)))
"""


def pages_cleared(how: str, **more: str) -> int:
    """Of ten calls: the fewest among ten times."""
    plain = {k: x for k, x in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC"))}
    command = [sys.executable, "-c", PROGRAM, how]
    ran = subprocess.run(command, capture_output=True, text=True, env={**plain, **more}, check=True)
    return int(ran.stdout)


@glibc
def test_a_step_clears_pages_once():
    as_it_is, kept = pages_cleared("as it is"), pages_cleared("kept")
    assert as_it_is > 100  # ten calls of 49 MB, each 12,000 pages or 24 huge ones
    assert kept < as_it_is / 20  # a busy machine frees late: a buffer more, but then it has it


def test_the_environment_is_obeyed(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert not keep_freed_memory()


def test_without_glibc_nothing_is_done(monkeypatch):
    for name in [x for x in os.environ if x.startswith(("MALLOC_", "GLIBC"))]:
        monkeypatch.delenv(name)

    def gone(name):
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", gone)
    assert not keep_freed_memory()
