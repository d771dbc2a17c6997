"""Triton kernels of fastrl, imported as `fastrl.kernels`."""

__version__ = "0.1.0"
