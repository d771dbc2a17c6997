"""The paged sampler: prompts to groups of responses with their log-probs."""

from fastrl.sampler.engine import Event, Progress, Sampler, SamplerStats
from fastrl.sampler.philox import PromptKey
from fastrl.sampler.sequence import SamplingParams

__all__ = ["Event", "Progress", "PromptKey", "Sampler", "SamplerStats", "SamplingParams"]
