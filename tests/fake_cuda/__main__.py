"""`python -m fake_cuda -m MODULE ARGUMENTS`, or a file in the place of `-m MODULE`."""

import runpy
import sys

import fake_cuda  # noqa: F401

_, first, *rest = sys.argv
if first == "-m":
    sys.argv = rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = [first, *rest]
    runpy.run_path(first, run_name="__main__")
