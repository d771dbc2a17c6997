"""What a run was made with: versions, commit, machine, and digests of its data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastrl import __version__
from fastrl.datasources import Example

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def describe() -> dict[str, Any]:
    """Versions, commit and machine, as plain values; None for what cannot be known."""
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {
        "fastrl": __version__,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if cuda else None,
    }


def data_sha256(examples: Iterable[Example]) -> str:
    """A digest of prompts with their golds and columns, in their order."""
    digest = hashlib.sha256()
    for e in examples:
        values = [e.id, [dict(m) for m in e.messages], e.answer, dict(e.columns)]
        digest.update(json.dumps(values, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def commit(folder: Path) -> str | None:
    """The commit of the checkout that a folder is of, "-dirty" behind it where files differ."""
    try:
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        # a folder that git does not know is inside of no checkout of ours
        subprocess.run(
            [*words[:3], "ls-files", "--error-unmatch", "__init__.py"],
            check=True, capture_output=True, timeout=10,
        )  # fmt: skip
        found = subprocess.run(
            [*words, "--exclude=*"], check=True, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words: "torch 2.12.0, now 2.13.0"."""

    def flat(values: Mapping[str, Any]) -> dict[str, Any]:
        packages = values.get("packages")
        return {**values, **(packages if isinstance(packages, dict) else {})}

    old, new = flat(then), flat(now)
    names = [k for k in old if k != "packages" and k in new and old[k] != new[k]]
    return [f"{name} {old[name]}, now {new[name]}" for name in names]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
