"""fastrl's token log-probs and entropies inside TRL's trainers.

    from fastrl.integrations.trl import patch_trl
    patch_trl()  # before trainers are made; unpatch_trl() puts TRL's own back

Every trainer that scores with a fused head (GRPO, RLOO, DPO, KTO, SFT: `model(...,
fused_lm_head=True)`) then has it from `fastrl.ops`, and so have those that start from logits.
Losses, metrics and everything else stay TRL's.

`patch_trl(loss_in_forward=True)` also runs GRPO's very own loss inside of the head's forward, which
then writes the gradient at once: three products of the head instead of four. That takes a loss of
which each token has a term of its own, one process, and no auxiliary loss of experts; else, and
for every other trainer, the first level remains.

Legend: N: rows (tokens), D: hidden width, V: vocabulary, B: sequences, T: tokens of each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastrl.errors import UsageError
from fastrl.integrations.linear_cross_entropy import entropy_from_logits as entropy_of
from fastrl.integrations.replacing import Replacements, check_version
from fastrl.ops import (
    linear_logprobs_and_entropy,
    linear_policy_loss,
    linear_row_statistics,
    logprobs_and_entropy,
)

__all__ = ["TESTED_VERSIONS", "FusedHead", "patch_trl", "unpatch_trl"]

TESTED_VERSIONS = ("1.16.0",)
OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")  # after the log-probs
# losses of GRPOTrainer that are sums of a term for each token, with weights of tokens
LOSSES_OF_TOKENS = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
_replacements = Replacements("trl")
_undo: list[Callable[[], None]] = []


def patch_trl(loss_in_forward: bool = False) -> None:
    """Puts fastrl's functions in the place of TRL's, wherever a module of it holds them.

    A second call takes back what the first one did. Raises UsageError without TRL, and for a
    version that this was not tested with.
    """
    check_version("trl", TESTED_VERSIONS)
    unpatch_trl()
    from trl.trainer import grpo_trainer, utils

    _replacements.put(
        {
            "trl.kernels": {"ChunkedLogProbFunction": FusedHead},
            "trl.trainer.utils": {
                "selective_log_softmax": selective_log_softmax,
                "entropy_from_logits": entropy_from_logits,
                "selective_log_softmax_and_entropy": selective_log_softmax_and_entropy,
            },
        }
    )
    # whether prompts and padding are left out of the head, which TRL does on GPUs alone
    _set(utils, "_use_triton", _leaves_rows_out)
    if loss_in_forward:
        trainer = grpo_trainer.GRPOTrainer
        _set(trainer, "_compute_loss", _with_loss_in_forward(trainer._compute_loss))


def unpatch_trl() -> None:
    """Puts TRL's own objects back, also into modules that were imported since."""
    _replacements.take_back()
    while _undo:
        _undo.pop()()


def _set(owner: Any, name: str, value: Any) -> None:
    _undo.append(functools.partial(setattr, owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _leaves_rows_out(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda")


class FusedHead:
    """Stands where TRL has `ChunkedLogProbFunction`: its `apply`, of the same results."""

    taken: list[dict[str, Any]] | None = None  # inputs, while a loss is to be computed with them
    calls = 0

    @classmethod
    def apply(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = OUTPUTS,
    ) -> tuple[Tensor | None, ...]:
        """(log-probs, entropies, log sum p^2, mean logits, whether the target is likeliest), [N].

        `hidden` [N, D], `weight` [V, D], `bias` [V], `targets` [N]. The first two have gradients;
        those that `outputs` does not name are None. `chunk_size` has no meaning here.
        Raises UsageError for a weight that DeepSpeed has in parts, and as `fastrl.ops` does.
        """
        if hasattr(weight, "ds_id"):
            raise UsageError(
                "the head's weight is in parts (DeepSpeed's ZeRO-3); use FSDP2 or a lower stage,"
                " or call unpatch_trl()"
            )
        if final_logit_softcapping is not None and "mean_logits" in outputs:
            # the mean of capped logits is no product; no trainer of policies asks for it
            return _replacements.original("ChunkedLogProbFunction").apply(
                hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping,
                logit_scale, outputs,
            )  # fmt: skip
        cls.calls += 1
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        head: dict[str, Any] = {
            "hidden": hidden.to(dtype), "weight": weight.to(dtype), "targets": targets,
            "bias": None if bias is None else bias.to(dtype), "temperature": temperature,
            "softcap": final_logit_softcapping, "logit_scale": logit_scale,
        }  # fmt: skip
        if cls.taken is not None:
            cls.taken.append(head)
            number_N = torch.arange(1, len(targets) + 1, dtype=torch.float32, device=hidden.device)
            return number_N, number_N, None, None, None
        given: dict[str, Tensor] = {}
        if {"log_sum_sq_probs", "is_top1"}.intersection(outputs):
            found = linear_row_statistics(**head)
            logprobs, given["entropy"] = found.logprobs, found.entropy
            given["log_sum_sq_probs"] = found.sum_squares.log()
            given["is_top1"] = found.argmax == targets
        else:
            logprobs, given["entropy"] = linear_logprobs_and_entropy(**head)
        if "mean_logits" in outputs:
            given["mean_logits"] = _mean_logits(**head)
        return logprobs, *(given[name] if name in outputs else None for name in OUTPUTS)


@torch.no_grad()
def _mean_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, logit_scale: float,
    **_: Any,
) -> Tensor:  # fmt: skip
    """The mean over the vocabulary of logit_scale (hidden @ weight.T + bias) / T, fp32 [N]."""
    mean_N = hidden.float() @ weight.mean(0, dtype=torch.float32)
    if bias is not None:
        mean_N = mean_N + bias.float().mean()
    return mean_N * (logit_scale / temperature)


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    """The log-prob of each index [...] under logits [..., V] / temperature: fp32, 0 where masked.

    Several indices a row [..., K] go to TRL's own function.
    """
    if index.dim() == logits.dim():
        original = _replacements.original("selective_log_softmax")
        return original(logits, index, temperature, row_mask)
    mask = None if row_mask is None else row_mask != 0
    return logprobs_and_entropy(logits, index, temperature=temperature, mask=mask)[0]


def entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    """The entropy of each row of logits [..., V], in nats: fp32 [...]."""
    return entropy_of(logits)


def selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_log_softmax` and the entropy of each row, from one read of the logits."""
    mask = None if row_mask is None else row_mask != 0
    logprobs, entropy = logprobs_and_entropy(logits, index, temperature=temperature, mask=mask)
    return logprobs, entropy if entropy_requires_grad else entropy.detach()


class _Scored(Exception):
    """Ends TRL's loss where it asked for log-probs."""


@contextlib.contextmanager
def _scoring_by(trainer: Any, function: Callable[..., Any]) -> Iterator[None]:
    """`function` is what the trainer asks for log-probs, entropies and the auxiliary loss."""
    trainer._get_per_token_logps_and_entropies = function
    try:
        yield
    finally:
        del trainer._get_per_token_logps_and_entropies


def _until_scored(
    trainer: Any, compute_loss: Callable[..., Tensor], model: Any, inputs: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """(the number of the head's row at each token [B, T], 0 for none; what the head takes)."""
    score = trainer._get_per_token_logps_and_entropies
    numbers: list[Tensor] = []

    def run(*args: Any, **kwargs: Any) -> None:
        numbers.append(score(*args, **kwargs)[0])
        raise _Scored

    taken: list[dict[str, Any]] = []
    FusedHead.taken = taken
    try:
        with _scoring_by(trainer, run), contextlib.suppress(_Scored):
            compute_loss(trainer, model, inputs)
    finally:
        FusedHead.taken = None
    return numbers[0], taken


def _is_of_tokens(trainer: Any) -> bool:
    """Whether the gradient of a trainer's loss by one token depends on that token alone."""
    return (
        trainer.loss_type in LOSSES_OF_TOKENS
        and trainer.importance_sampling_level == "token"
        and trainer.top_entropy_quantile == 1.0
        and trainer.off_policy_mask_threshold is None
        and not trainer.use_adaptive_entropy
        and not trainer.aux_loss_enabled
        and trainer.accelerator.num_processes == 1
    )


def _with_loss_in_forward(compute_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """TRL's `_compute_loss`, run where the head has log-probs, its gradient written there.

    First it runs up to the place where it asks for log-probs, for what the head takes; then the
    head runs it, with log-probs, after each chunk of rows.
    """

    @functools.wraps(compute_loss)
    def run(self: Any, model: Any, inputs: Any) -> Tensor:
        if not (torch.is_grad_enabled() and self.model.training and _is_of_tokens(self)):
            return compute_loss(self, model, inputs)
        number_BT, heads = _until_scored(self, compute_loss, model, inputs)
        if len(heads) != 1 or not len(heads[0]["targets"]):
            return compute_loss(self, model, inputs)
        live_BT, index_BT = number_BT > 0, (number_BT.long() - 1).clamp(min=0)
        metrics = self._metrics["train"]
        lengths = {name: len(values) for name, values in metrics.items()}

        def loss_fn(logprobs_N: Tensor, entropy_N: Tensor, _: Any) -> Tensor:
            for name, values in metrics.items():  # the last call's are those of all rows
                del values[lengths.get(name, 0) :]
            pair = [torch.where(live_BT, x[index_BT], 0.0) for x in (logprobs_N, entropy_N)]
            with _scoring_by(self, lambda *_, **__: (*pair, None)):
                return compute_loss(self, model, inputs)

        nothing_N = torch.zeros_like(heads[0]["targets"], dtype=torch.float32)
        found = linear_policy_loss(**heads[0], advantages=nothing_N, loss_fn=loss_fn, rowwise=True)
        return found.loss_sum

    return run
