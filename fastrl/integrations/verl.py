"""fastrl's token log-probs and entropies inside verl, from the moment that this is imported.

verl imports it in every worker, before it builds a model there:

    actor_rollout_ref.model.external_lib=fastrl.integrations.verl

It replaces `linear_cross_entropy`, which verl's fused forward calls (actor_rollout_ref.model.
use_fused_kernels=True with fused_kernel_options.impl_backend=triton), `logprobs_from_logits`, and
the two functions for entropies from logits, which the other forward calls. Raises UsageError
without verl, and for a version that it was not tested with.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fastrl.errors import UsageError
from fastrl.integrations import linear_cross_entropy as replacements

__all__ = ["TESTED_VERSIONS", "patch_verl", "unpatch_verl"]

TESTED_VERSIONS = ("0.9.1",)
REPLACED = {
    "verl.utils.kernel.linear_cross_entropy": ("linear_cross_entropy",),
    "verl.utils.torch_functional": (
        "logprobs_from_logits",
        "entropy_from_logits",
        "entropy_from_logits_with_chunking",
    ),
}
_originals: dict[str, Callable[..., Any]] = {}  # by name; empty where nothing is replaced


def patch_verl() -> None:
    """Puts fastrl's functions in the place of verl's, wherever a loaded module has one by name.

    A second call does nothing. What an object of verl's already holds, as an engine its compiled
    entropy, stays: patch before engines are built.
    """
    if _originals:
        return
    _check_version()
    for path, names in REPLACED.items():
        module = importlib.import_module(path)
        _originals.update({name: getattr(module, name) for name in names})
    for name, original in _originals.items():
        _exchange(name, original, getattr(replacements, name))


def unpatch_verl() -> None:
    """Puts verl's own functions back, also into modules that were imported since."""
    for name, original in _originals.items():
        _exchange(name, getattr(replacements, name), original)
    _originals.clear()


def _exchange(name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for module in _loaded():
        if vars(module).get(name) is old:
            setattr(module, name, new)


def _loaded() -> list[ModuleType]:
    return [m for name, m in list(sys.modules.items()) if m and name.partition(".")[0] == "verl"]


def _check_version() -> None:
    if importlib.util.find_spec("verl") is None:
        raise UsageError("verl is not installed; run: pip install 'fastrl[verl]'")
    version = importlib.import_module("verl").__version__
    if version not in TESTED_VERSIONS:
        raise UsageError(
            f"verl {version} is installed, and fastrl.integrations.verl was tested with"
            f" {', '.join(TESTED_VERSIONS)} only; install that, or leave external_lib out"
        )


patch_verl()
