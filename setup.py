"""What pyproject.toml cannot say: the kernels folder's package name, and the C++ extension."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

ParallelCompile().install()  # a file on each core

setup(
    packages=[*find_packages(include=["fastrl", "fastrl.*"]), "fastrl.kernels", "fastrl.bench"],
    package_dir={"fastrl.kernels": "kernels", "fastrl.bench": "bench"},
    package_data={
        "fastrl": ["py.typed", "_C.pyi"],
        "fastrl.embedded": ["models/*/*", "*.json"],
        "fastrl.page": ["*.js", "*.css", "vendor/*"],
    },
    ext_modules=[
        Pybind11Extension(
            "fastrl._C",
            sorted(glob("csrc/**/*.cpp", recursive=True)),
            # without it a source distribution lacks the headers
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            cxx_std=17,
            extra_compile_args=[
                "-O3",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-pthread",
                "-fopenmp-simd",
            ],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
