"""What is replaced in another package, on a package made for it; and what is said without one."""

import importlib
import subprocess
import sys

import pytest

from fastrl.errors import UsageError
from fastrl.integrations.replacing import Replacements, check_version


@pytest.fixture
def package(tmp_path, monkeypatch):
    """other, whose function two modules hold, one of them by another name."""
    (tmp_path / "other").mkdir()
    for name, text in {
        "__init__": "__version__ = '1.2'",
        "maths": "def double(x):\n    return 2 * x\ndef four(x):\n    return double(double(x))",
        "user": "from other.maths import double as twice\ndef use(x):\n    return twice(x)",
    }.items():
        (tmp_path / "other" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "other"
    for name in [name for name in sys.modules if name.partition(".")[0] == "other"]:
        del sys.modules[name]


def test_every_holder_is_given_the_other_and_the_first_again(package):
    maths = importlib.import_module("other.maths")
    original = maths.double
    replacements = Replacements(package)
    assert not replacements
    replacements.put({"other.maths": {"double": lambda x: 3 * x}})
    assert replacements and replacements.original("double") is original
    user = importlib.import_module("other.user")  # imports what there is now
    assert maths.four(1) == 9 and user.use(1) == 3
    replacements.take_back()
    assert maths.double is user.twice is original and not replacements
    assert maths.four(1) == 4 and user.use(1) == 2


def test_versions(package):
    check_version(package, ("1.1", "1.2"))
    with pytest.raises(UsageError, match=r"other 1.2 is installed.*tested with 1\.1 only"):
        check_version(package, ("1.1",))
    with pytest.raises(UsageError, match=r"^absent is not installed; run: pip install 'fastrl\[a"):
        check_version("absent", ("1.1",))


@pytest.mark.parametrize(
    ("name", "call"), [("trl", "; fastrl.integrations.trl.patch_trl()"), ("verl", "")]
)
def test_without_the_framework_one_sentence_says_what_to_install(name, call):
    hidden = f"import sys; sys.modules[{name!r}] = None; import fastrl.integrations.{name}{call}"
    found = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1
    assert last.endswith(f"{name} is not installed; run: pip install 'fastrl[{name}]'"), last
