"""fastrl: reinforcement learning for language models, towards a distribution that it names."""

__version__ = "0.1.0"
