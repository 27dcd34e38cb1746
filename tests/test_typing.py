"""The stubs: what mypy makes of a user's script, and whether the values are of those types."""

import runpy
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("typing_user_script.py")


def belongs(value, expected):
    """Whether the value is of the type, down to the dtype and, where it is told, the number of axes."""
    if expected is Any:
        return True
    kind, parameters = get_origin(expected) or expected, get_args(expected)
    if hasattr(kind, "__value__"):  # from NumPy 2.5 on, NDArray is declared by a `type` statement
        return belongs(value, kind.__value__[parameters])
    if kind is tuple:
        return len(value) == len(parameters) and all(map(belongs, value, parameters))
    if kind is np.ndarray:
        shape, dtype = parameters
        axes = get_args(shape)
        known = len(axes) > 0 and Ellipsis not in axes
        (scalar,) = get_args(dtype)
        return (
            type(value) is np.ndarray
            and issubclass(value.dtype.type, get_origin(scalar) or scalar)
            and (value.ndim == len(axes) if known else value.ndim > 0)
        )
    return isinstance(value, kind)


def test_values_are_of_the_types_asserted(monkeypatch, capsys, default_threads):
    asserted = []

    def compare(value, expected):
        asserted.append(expected)
        assert belongs(value, expected), f"{value!r} is not of type {expected}"
        return value

    monkeypatch.setattr(typing, "assert_type", compare)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert len(asserted) > 100
    assert capsys.readouterr().out.startswith("version: ")


def test_a_wrong_type_would_be_noticed():
    single = np.zeros((2, 3), np.float32)
    assert belongs(single, np.ndarray[tuple[int, int], np.dtype[np.float32]])
    assert not belongs(single, np.ndarray[tuple[int], np.dtype[np.float32]])
    assert not belongs(single, np.ndarray[tuple[Any, ...], np.dtype[np.float64]])
    assert not belongs(single[0, 0], np.ndarray[tuple[Any, ...], np.dtype[np.float32]])
    assert not belongs((single, single), tuple[np.float32, Any])


def test_mypy_agrees():
    pytest.importorskip("mypy", reason="mypy is in the dependency group lint, not in the extra test")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(SCRIPT)]
    checked = subprocess.run(command, cwd=SCRIPT.parent.parent, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
