"""The regimes: the reward of a response, and the distribution that maximising it converges to.

`lp` is the log-likelihood of a response under the frozen reference p, `lpi` under the policy as the
trainer computes it (detached), both summed over its tokens at the sampling temperature; `r` is the
task reward. Source of the formulas: arXiv:2604.16259.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastrl.config import Config, ObjectiveConfig
from fastrl.errors import UsageError
from fastrl.losses import LossSpec

DEFAULT_ALPHA = 4.0
DEFAULT_TILTED_BETA = 0.01  # the study's beta_inv = 100


@dataclass(frozen=True)
class Objective:
    """A regime with its parameters resolved."""

    name: str
    alpha: float | None  # None: the regime has none
    beta: float | None  # None: the regime has none
    mode: str
    length_norm: str  # "sum", "mean" or "power"
    length_power: float  # lp / |y|^length_power; 0 for "sum", 1 for "mean"
    temperature: float

    @property
    def uses_likelihood(self) -> bool:
        """Whether lp and lpi are part of the reward, so that an optimum is claimed."""
        return self.name != "task" or self.beta is not None

    @property
    def uses_task_reward(self) -> bool:
        """Whether r is part of the reward."""
        return self.name != "sharpen"

    @property
    def is_power(self) -> bool:
        """Whether the optimum is p^alpha / Z."""
        tempered = self.name == "sharpen" and self.mode == "tempered"
        return tempered and self.length_norm == "sum"

    @property
    def study_name(self) -> str:
        """The regime by the study's name."""
        if self.name == "sharpen":
            return "tempered sampling" if self.mode == "tempered" else "distribution sharpening"
        if self.name == "tilted":
            return "tilted sampling"
        return "task reward" if self.beta is None else "KL-regularised RL from a verifier"

    @property
    def target(self) -> str:
        """The distribution that the run converges to, as a formula in p, r and y."""
        p = "p" if self.temperature == 1 else f"p_T (T = {self.temperature:g})"
        tilt = "" if self.beta is None else f"r / {self.beta:g}"
        if self.name == "task":
            return f"{p} exp({tilt}) / Z" if tilt else "any policy supported on r = 1"
        length = {"sum": "", "mean": " / |y|", "power": f" / |y|^{self.length_power:g}"}[
            self.length_norm
        ]
        if self.name == "sharpen" and self.mode == "likelihood":
            what = "likeliest response" if not length else f"response with the largest lp{length}"
            return f"the point mass on the {what} under {p}"
        if not length:
            power = f"{p}^{self.alpha:g}"
            return f"{power} exp({tilt}) / Z" if tilt else f"{power} / Z"
        sharp = f"{self.alpha - 1:g} lp{length}" if self.alpha is not None else ""
        return f"{p} exp({sharp}{' + ' + tilt if tilt else ''}) / Z"

    def reward(
        self,
        ref_logprob_sum: torch.Tensor,
        policy_logprob_sum: torch.Tensor,
        task_reward: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """The reward R of each response, fp64 [responses].

        `ref_logprob_sum` is lp, `policy_logprob_sum` lpi (the trainer's, not the sampler's: with
        the sampler's the fixed point is wrong), `task_reward` r, `lengths` |y| in tokens.
        """
        lp, lpi = ref_logprob_sum.double(), policy_logprob_sum.double()
        r, length = task_reward.double(), lengths.double()
        if self.name == "task":
            return r if self.beta is None else r + self.beta * (lp - lpi)
        assert self.alpha is not None
        normed = lp / length**self.length_power
        if self.name == "sharpen":
            if self.mode == "likelihood":
                return self.alpha * normed
            return (self.alpha - 1) * normed + (lp - lpi)
        assert self.beta is not None
        return r + self.beta * ((self.alpha - 1) * normed + (lp - lpi))

    def log_target(
        self, ref_logprob_sum: torch.Tensor, task_reward: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """The log of the optimum's density in each response, without its log Z, fp64 [responses].

        It is what the reward is without its -lpi, over beta where there is one. Raises UsageError
        for an optimum that has no density: of pure likelihood, and of the task reward alone.
        """
        if not self.uses_likelihood or self.mode == "likelihood":
            raise UsageError(f"the optimum of {self.name} is {self.target}: it has no density in p")
        zero = torch.zeros_like(ref_logprob_sum)
        reward = self.reward(ref_logprob_sum, zero, task_reward, lengths)
        return reward if self.beta is None else reward / self.beta


def make_objective(config: ObjectiveConfig, temperature: float = 1.0) -> Objective:
    """The regime that `config` names; raises UsageError for parameters that do not fit it."""
    beta = config.beta
    if config.beta_inv is not None:
        if beta is not None:
            raise UsageError(
                "objective.beta and objective.beta_inv are both given; keep one (beta_inv is"
                " 1/beta)"
            )
        if config.beta_inv == 0:
            if config.name == "tilted":
                raise UsageError(
                    "beta_inv = 0 leaves no task reward; use --objective sharpen for that"
                )
            if config.name == "task":
                raise UsageError(
                    "beta_inv = 0 leaves task without its reward; give a positive beta_inv or none"
                )
        elif config.beta_inv < 0 or not math.isfinite(config.beta_inv):
            raise UsageError(
                f"objective.beta_inv is {config.beta_inv}; it must be a positive number"
            )
        else:
            beta = 1 / config.beta_inv
    if beta is not None and not (beta > 0 and math.isfinite(beta)):
        raise UsageError(f"objective.beta is {beta}; it must be a positive number")
    if config.name == "sharpen" and beta is not None:
        raise UsageError(
            "sharpen has no task reward, so it takes no beta; use --objective tilted for both"
        )
    if config.name == "task" and config.alpha is not None:
        raise UsageError(
            "task does not sharpen, so it takes no alpha; use --objective tilted for both"
        )
    if config.mode == "likelihood" and config.name != "sharpen":
        raise UsageError(
            f"mode 'likelihood' belongs to sharpen; with {config.name} leave objective.mode out"
        )
    alpha = (
        None if config.name == "task" else DEFAULT_ALPHA if config.alpha is None else config.alpha
    )
    if alpha is not None and not (alpha > 0 and math.isfinite(alpha)):
        raise UsageError(f"objective.alpha is {alpha}; it must be a positive number")
    if config.name == "tilted" and beta is None:
        beta = DEFAULT_TILTED_BETA
    norm, power = _length_norm(config.length_norm)
    if config.name == "task" and norm != "sum":
        raise UsageError("length_norm scales the likelihood term, which task has not; leave it out")
    return Objective(config.name, alpha, beta, config.mode, norm, power, temperature)


def _length_norm(text: str) -> tuple[str, float]:
    words = text.split()
    if words in (["sum"], ["mean"]):
        return words[0], 0.0 if words[0] == "sum" else 1.0
    if len(words) == 2 and words[0] == "power":
        try:
            power = float(words[1])
        except ValueError:
            power = math.nan
        if math.isfinite(power):
            return "power", power
    raise UsageError(
        f"objective.length_norm is {text!r}; allowed: 'sum', 'mean', 'power W' with a number W"
    )


def check_contradictions(config: Config) -> Objective:
    """The run's objective; raises UsageError where settings contradict the optimum it claims."""
    objective = make_objective(config.objective, config.sampling.temperature)
    sampling, loss = config.sampling, config.loss
    preset = LossSpec.preset(loss.preset) if loss.preset else None
    if not sampling.temperature > 0:
        raise UsageError(
            f"sampling.temperature is {sampling.temperature}; training needs samples, so it must be"
            " above 0"
        )
    if not objective.uses_likelihood:
        return objective
    claim = f"{objective.name} claims to converge to {objective.target}"
    for key, neutral in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        if getattr(sampling, key) != neutral:
            raise UsageError(
                f"sampling.{key} is {getattr(sampling, key)}, but {claim}, and weights cannot"
                f" restore the support that truncated sampling leaves out; set sampling.{key} ="
                f" {neutral}"
            )
    kl = None
    if preset is not None:
        if preset.kl_coef:
            kl, way_out = f"loss.preset {loss.preset!r} has a KL in the loss", "take another"
    elif loss.kl != "none" and loss.kl_coef:
        kl, way_out = f"loss.kl is {loss.kl!r}", "set loss.kl = 'none'"
    if kl is not None:
        raise UsageError(
            f"{kl}, but {claim}: as a loss k1 has gradient zero, k2 counts the KL twice and k3"
            f" leads to the forward KL's fixed point; the KL is in the reward, {way_out}"
        )
    if loss.entropy_coef:
        raise UsageError(
            f"loss.entropy_coef is {loss.entropy_coef}, but {claim}, which an entropy bonus moves;"
            " set it to 0"
        )
    if loss.advantage == "grpo":
        raise UsageError(
            f"loss.advantage is 'grpo', but {claim}, where rewards are equal at the optimum, and"
            " dividing by their standard deviation blows rounding noise up to 1; use 'rloo' or"
            " 'dr_grpo'"
        )
    if loss.mask_truncated:
        raise UsageError(
            f"loss.mask_truncated leaves responses out of the loss, but {claim}, which counts them;"
            " set it to false"
        )
    if loss.drop_groups_without_signal:
        raise UsageError(
            f"loss.drop_groups_without_signal looks at the task reward alone, but {claim}; set it"
            " to false"
        )
    return objective
