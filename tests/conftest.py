"""Where the shared pieces of the tests are found, and how their threads wait."""

import os
import sys
from pathlib import Path

import pytest

# as the command line does, and before torch is loaded: beside other programs threads that spin
# make a test ten times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # processes beside each other share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent / "exact"))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium, where there is one."""
    from chromium import Chromium, find_chromium

    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium here; `apt-get install chromium` gets one")
    browser = Chromium(path, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def one_thread():
    """What is too small for more threads is done by one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_pool(monkeypatch):
    """Has memory run out where the sampler asks for more than 60 blocks."""
    import torch

    from fastrl.sampler import engine

    cache = engine.PagedCache

    def limited(model, num_blocks, *rest):
        if num_blocks > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cache(model, num_blocks, *rest)

    def set_up():
        monkeypatch.setattr(engine, "PagedCache", limited)

    return set_up
