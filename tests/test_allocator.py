"""What JAX frees on a CPU stays with the process, and only where nobody else has said how."""

import os
import platform
import shutil
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

OTHER = """
#include <stddef.h>
extern void *__libc_malloc(size_t);
void *malloc(size_t n) { return __libc_malloc(n); }
size_t malloc_usable_size(void *p) { return 0; }
"""


def pages_cleared(how: str, **more: str) -> int:
    """Of ten calls: the fewest among ten times."""
    plain = {k: x for k, x in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC"))}
    env = {**plain, "JAX_PLATFORMS": "cpu", **more}
    command = [sys.executable, "-c", PROGRAM, how]
    ran = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
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


@glibc
def test_an_allocator_loaded_in_its_place_is_not_told(tmp_path):
    """A library that brings a malloc of its own: glibc's settings would be of no malloc in use."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make another allocator with")
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    told = "from zoo.allocator import keep_freed_memory; print(keep_freed_memory())"
    plain = {k: x for k, x in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC"))}
    for env, known in ((plain, "True"), ({**plain, "LD_PRELOAD": str(library)}, "False")):
        ran = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, env=env)
        assert ran.stdout.strip() == known, ran.stderr


def test_without_glibc_nothing_is_done(monkeypatch):
    for name in [x for x in os.environ if x.startswith(("MALLOC_", "GLIBC"))]:
        monkeypatch.delenv(name)

    def gone(name):
        raise OSError("no such library")

    monkeypatch.setattr("ctypes.CDLL", gone)
    assert not keep_freed_memory()
