"""fastrl's token log-probs and entropies inside verl, from the moment that this is imported.

verl imports it in every worker, before it builds a model there:

    actor_rollout_ref.model.external_lib=fastrl.integrations.verl

It replaces `linear_cross_entropy`, which verl's fused forward calls (actor_rollout_ref.model.
use_fused_kernels=True with fused_kernel_options.impl_backend=triton), `logprobs_from_logits`, and
the two functions for entropies from logits, which the other forward calls. Raises UsageError
without verl, and for a version that it was not tested with.
"""

from __future__ import annotations

from fastrl.integrations import linear_cross_entropy as functions
from fastrl.integrations.replacing import Replacements, check_version

__all__ = ["TESTED_VERSIONS", "patch_verl", "unpatch_verl"]

TESTED_VERSIONS = ("0.9.1",)
_replacements = Replacements("verl")


def patch_verl() -> None:
    """Puts fastrl's functions in the place of verl's, wherever a loaded module holds one.

    A second call does nothing. What an object of verl's already holds, as an engine its compiled
    entropy, stays: patch before engines are built.
    """
    if _replacements:
        return
    check_version("verl", TESTED_VERSIONS)
    _replacements.put(
        {
            "verl.utils.kernel.linear_cross_entropy": {
                "linear_cross_entropy": functions.linear_cross_entropy
            },
            "verl.utils.torch_functional": {
                "logprobs_from_logits": functions.logprobs_from_logits,
                "entropy_from_logits": functions.entropy_from_logits,
                "entropy_from_logits_with_chunking": functions.entropy_from_logits_with_chunking,
            },
        }
    )


def unpatch_verl() -> None:
    """Puts verl's own functions back, also into modules that were imported since."""
    _replacements.take_back()


patch_verl()
