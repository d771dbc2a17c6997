"""What is installed and shipped: light imports, the kernels package, the source distribution."""

import os
import re
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns, which

import pytest

import fastrl

ROOT = Path(__file__).parents[1]
HEAVY = ["datasets", "matplotlib", "pyarrow", "safetensors"]
HEAVY += ["tokenizers", "transformers", "triton"]
# PyPI's `kernels`, if it is installed, is somebody else's
NOT_OURS = f"""
from importlib.util import find_spec
spec = find_spec("kernels")
assert spec is None or not (spec.origin or "").startswith({str(ROOT / "kernels")!r}), spec
"""
# enough of pybind11.setup_helpers for a distribution that compiles nothing
STAND_IN = """
from setuptools import Extension
from setuptools.command.build_ext import build_ext

class Pybind11Extension(Extension):
    def __init__(self, *args, cxx_std=0, **settings):
        super().__init__(*args, **settings)

class ParallelCompile:
    def __init__(self, *args, **settings):
        pass

    def install(self):
        pass
"""


def python(code, cwd, **env):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | env, capture_output=True, text=True
    )


def test_importing_the_operations_loads_nothing_heavy_but_torch(tmp_path):
    code = f"import sys, fastrl.ops; print([m for m in {['torch', *HEAVY]} if m in sys.modules])"
    done = python(code, tmp_path)
    assert done.stdout.strip() == "['torch']", done.stdout + done.stderr


def test_the_kernels_folder_is_no_top_level_package(tmp_path):
    done = python(NOT_OURS, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_kernels_folder_is_no_top_level_package_under_pytest(tmp_path):
    probe = tmp_path / "test_probe.py"
    probe.write_text("def test_probe():" + NOT_OURS.replace("\n", "\n    "))
    command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), str(probe)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_kernels_package_imports_nothing(tmp_path):
    code = (
        "import sys, fastrl.kernels as k; print(k.__version__, 'torch' in sys.modules, k.__file__)"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    version, torch_loaded, file = done.stdout.split(maxsplit=2)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version) and torch_loaded == "False"
    assert Path(file.strip()).parent.name == "kernels"


def test_the_package_says_that_it_is_typed():
    assert (Path(fastrl.__file__).parent / "py.typed").is_file()


def test_a_source_distribution_is_whole(tmp_path):
    if find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed here: no source distribution can be built")
    tree = tmp_path / "tree"
    copytree(ROOT, tree, ignore=ignore_patterns(
        ".*", "runs", "build", "dist", "*.egg-info", "*.so", "__pycache__", "shared"
    ))  # fmt: skip
    env = {}
    if find_spec("pybind11") is None:
        stand_in = tmp_path / "path" / "pybind11"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").touch()
        (stand_in / "setup_helpers.py").write_text(STAND_IN)
        env["PYTHONPATH"] = str(stand_in.parent)
    code = "from setuptools.build_meta import build_sdist; print(build_sdist('dist'))"
    done = python(code, tree, **env)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tree / "dist" / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["LICENSE", "README.md", "pyproject.toml", "setup.py", "kernels/__init__.py"]
    wanted += [
        "fastrl/py.typed",
        "fastrl/ops/public.py",
        "fastrl/ops/definition.py",
        "fastrl/sampler/engine.py",
    ]
    for pattern in (
        *("csrc/**/*.h", "csrc/**/*.cpp", "fastrl/**/*.py", "fastrl/embedded/models/*/*"),
        *("kernels/*.py", "bench/*.py"),
        *("fastrl/page/*.js", "fastrl/page/*.css", "fastrl/page/vendor/*"),
    ):
        found = [str(p.relative_to(ROOT)) for p in ROOT.glob(pattern)]
        assert found, pattern
        wanted += found
    assert set(wanted) <= names, sorted(set(wanted) - names)


@pytest.mark.skipif(which("clang++") is None, reason="clang++ is not installed")
def test_the_kernels_compile_with_clang():
    sources = [str(path) for path in (ROOT / "csrc").glob("*.cpp") if path.name != "module.cpp"]
    command = ["clang++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wno-unknown-pragmas", *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
