"""The resident memory of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks below the size that glibc maps by itself, every other one freed.
PROGRAM = """
import ctypes, psutil
from flowllm.system.memory import return_free_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
blocks = [libc.malloc(100_000) for _ in range(2_000)]
for block in blocks:
    libc.memset(block, 1, 100_000)
for block in blocks[::2]:
    libc.free(block)
resident = psutil.Process().memory_info
before = resident().rss
return_free_memory()
print((before - resident().rss) // 10**6)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_free_memory_between_used_blocks_goes_back() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    )
    assert int(shown.stdout) > 80  # of 100 MB
