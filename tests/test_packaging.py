"""What is installed, and what the README promises about it."""

import doctest
import inspect
import pydoc
import re
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest

import cylsm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    return [text for name, text in FENCED.findall(README) if name == language]


def test_version_is_that_of_the_metadata():
    assert cylsm.__version__ == metadata.version("cylsm")


@pytest.mark.parametrize("suffix", [".c", ".h", ".pxd", ".pxi", ".pyx"])
def test_no_sources_are_installed(suffix):
    package = resources.files("cylsm")
    if Path(str(package)) == ROOT / "src" / "cylsm":
        pytest.skip("an editable install is the source tree")
    assert [entry.name for entry in package.iterdir() if entry.name.endswith(suffix)] == []


def test_stubs_are_installed():
    names = {entry.name for entry in resources.files("cylsm").iterdir()}
    assert {"py.typed", "_functions.pyi", "_losses.pyi"} <= names


def test_data_come_with_their_licence():
    names = {entry.name for entry in resources.files("cylsm._cli").iterdir()}
    assert {"digits.npz", "digits.txt"} <= names
    assert "CC BY 4.0" in (resources.files("cylsm._cli") / "digits.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(cylsm.__all__) - {"__version__"}))
def test_help_shows_signature_and_docstring(name):
    """Of a compiled function too, for which pydoc has to be told the signature."""
    function = getattr(cylsm, name)
    shown = pydoc.render_doc(function, renderer=pydoc.plaintext)
    # From Python 3.13 on, a long signature is broken into lines.
    assert "".join(f"{name}{inspect.signature(function)}".split()) in "".join(shown.split())
    lines = [line.strip() for line in shown.splitlines()]
    missing = [line for line in inspect.getdoc(function).splitlines() if line.strip() not in lines]
    assert missing == []


@pytest.mark.parametrize("command", ["pip install . && python -m cylsm", 'pip install ".[test]" && python -m pytest'])
def test_readme_has_the_commands(command):
    assert command in [line for text in blocks("sh") for line in text.splitlines()]


def test_readme_examples_run():
    examples = doctest.DocTestParser().get_doctest("".join(blocks("python")), {}, "README.md", "README.md", 0)
    with np.printoptions():  # the README sets its own
        outcome = doctest.DocTestRunner().run(examples)
    assert outcome.attempted > 30
    assert outcome.failed == 0


def test_readme_lists_every_public_name():
    missing = [name for name in cylsm.__all__ if f"`{name}" not in README]
    assert missing == []
