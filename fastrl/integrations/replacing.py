"""Functions of another package in the places where its modules hold them, and back again."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from fastrl.errors import UsageError


def check_version(package: str, tested: tuple[str, ...]) -> None:
    """Raises UsageError where `package` is missing, or of a version that was not tried."""
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{package} is not installed; run: pip install 'fastrl[{package}]'")
    version = importlib.import_module(package).__version__
    if version not in tested:
        raise UsageError(
            f"{package} {version} is installed, and fastrl.integrations.{package} was tested with"
            f" {', '.join(tested)} only; install that, or leave the integration out"
        )


class Replacements:
    """Names of a package's modules, replaced together.

    A module that took one by `from ... import` holds the object itself: every loaded module of the
    package that has it by that name is given the other, also one that was imported in between.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.pairs: dict[str, tuple[Any, Any]] = {}  # by name: original, replacement

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def put(self, new: Mapping[str, Mapping[str, Any]]) -> None:
        """Replacements by name, under the path of the module that defines the originals."""
        for path, names in new.items():
            module = importlib.import_module(path)
            for name, replacement in names.items():
                self.pairs[name] = getattr(module, name), replacement
        for original, replacement in self.pairs.values():
            self._exchange(original, replacement)

    def original(self, name: str) -> Any:
        return self.pairs[name][0]

    def take_back(self) -> None:
        for original, replacement in self.pairs.values():
            self._exchange(replacement, original)
        self.pairs.clear()

    def _exchange(self, old: Any, new: Any) -> None:
        for module in self._loaded():
            for name in [name for name, value in vars(module).items() if value is old]:
                setattr(module, name, new)

    def _loaded(self) -> Iterator[ModuleType]:
        for name, module in list(sys.modules.items()):
            if module is not None and name.partition(".")[0] == self.package:
                yield module
