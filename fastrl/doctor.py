"""What is installed, and which path each operation takes here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable

import torch

from fastrl import __version__, packed_attention
from fastrl.sampler import attention as sampler_attention

PACKAGES = ("torch", "triton", "transformers", "datasets", "safetensors", "reasoning-gym")


def _loss() -> str:
    """The path of the loss on the CPU, on a GPU and in fp64, as the operations resolve it."""
    from fastrl.ops.library import resolve

    def name(device: str) -> str:
        backend = resolve("auto", torch.device(device), torch.float32)
        if backend == "cpu":
            from fastrl import _C

            return f"C++ ({_C.instruction_set()})"
        return {"triton": "Triton", "torch": "torch (the definition)"}[backend]

    return f"{name('cpu')} on the CPU, {name('cuda')} on a GPU, torch (the definition) for fp64"


def _on_devices(choose: Callable[[torch.device, torch.dtype, int], object]) -> str:
    """Who computes an attention here, in bfloat16 with heads of 128."""

    def name(device: str) -> str:
        return str(choose(torch.device(device), torch.bfloat16, 128))

    on_gpu = f", {name('cuda')} on the GPU" if torch.cuda.is_available() else ""
    return f"{name('cpu')} on the CPU{on_gpu}"


def report() -> list[tuple[str, str]]:
    """Pairs of a name and a finding."""
    rows = [
        ("fastrl", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        (
            "processor",
            f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}",
        ),
    ]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    gpu = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "none: everything runs on the CPU"
    )
    native = importlib.util.find_spec("fastrl._C") is not None
    rows += [
        ("GPU", gpu),
        ("loss", _loss()),
        ("attention", f"training: {_on_devices(packed_attention.choose)}"),
        ("", f"sampling: {_on_devices(sampler_attention.choose)}"),
        (
            "extension",
            (
                "fastrl._C is built"
                if native
                else "fastrl._C is missing: grading cannot run; reinstall fastrl"
            ),
        ),
    ]
    return rows
