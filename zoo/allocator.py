"""Freed memory stays with the process: on a CPU every step asks for the same buffers again.

glibc maps a block of more than 32 MB when it is asked for and unmaps it when it is freed, and the
kernel clears every page of it each time: of what a training step of small models takes, up to a
third (benchmarks/allocator.py).
"""

import ctypes
import os

# mallopt(3). One arena, as those of threads hold no block above 64 MiB.
ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -8, -4, -1, -2
SETTINGS = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}
# What other allocators bring along; malloc itself may have the address of a stub of the program.
REPLACED = ("mallopt", "malloc_usable_size")


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to 2 GiB at the end of its heap; whether it does now.

    For training on a CPU. In the shell what trains calls it; in Python call it before JAX has
    computed anything: arenas of threads that run already stay. The resident set stays at its
    peak. False, and nothing done, without glibc, where another allocator is loaded in its place
    (tcmalloc, jemalloc), or where the environment sets it (MALLOC_*, GLIBC_TUNABLES).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        libc, loaded = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        if any(_address(libc[name]) != _address(loaded[name]) for name in REPLACED):
            return False
        return all([libc.mallopt(name, value) for name, value in SETTINGS.items()])
    except (OSError, TypeError, AttributeError):  # Windows, macOS, musl
        return False


def _address(function) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value
