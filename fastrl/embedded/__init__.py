"""The embedded models and their task, by name."""

from __future__ import annotations

from pathlib import Path

from fastrl.embedded.task import examples
from fastrl.errors import UsageError

__all__ = ["examples", "model_dir"]

DIRECTORIES = ("embedded:0", "embedded:0.25", "embedded:0.5")
NAMES = {name: name.partition(":")[2] for name in DIRECTORIES} | {"embedded": "0.25"}


def model_dir(name: str) -> Path:
    """The Hugging Face directory of an embedded model; UsageError for a name it does not have."""
    if name not in NAMES:
        raise UsageError(f"there is no embedded model {name!r}: name {', '.join(NAMES)}")
    return Path(__file__).parent / "models" / NAMES[name]
