"""The instruction sets of the C++ kernels that run here, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fastrl import _C

INSTRUCTION_SETS = ("amx", "avx512_bf16", "avx512", "avx2", "plain")


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Kernels of the set `name`; skips where the processor or the build lacks it."""
    before = _C.instruction_set()
    if not _C.use_instruction_set(name):
        pytest.skip(f"this processor or this build has no {name}")
    try:
        yield
    finally:
        assert _C.use_instruction_set(before)
