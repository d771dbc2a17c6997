"""The paged sampler: prompts to groups of responses with their log-probs."""

from fastrl.sampler.call import Event, Progress, SamplerStats
from fastrl.sampler.engine import Sampler
from fastrl.sampler.philox import PromptKey
from fastrl.sampler.sequence import SamplingParams

__all__ = ["Event", "Progress", "PromptKey", "Sampler", "SamplerStats", "SamplingParams"]
