"""Benchmarks, imported as `fastrl.bench` by the command `fastrl bench` alone."""
