"""``python -m cylsm accuracy`` and ``bench``: what they print and write, and how they fail. No time is asserted."""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from cylsm._cli import _exact, _libraries, accuracy, bench, main
from cylsm._cli._libraries import Arrays

PEERS = {"torch", "onnxruntime", "jax"}  # slow to import, and not always there
SCIPY = pytest.mark.skipif("SciPy" not in _libraries.installed_versions(["SciPy"]), reason="needs SciPy")


def run(*args, cwd, missing=(), **options):
    """Run the command with every warning an error, as if the packages `missing` were not installed."""
    modules = cwd.parent / f"{cwd.name}-modules"
    modules.mkdir(exist_ok=True)
    for package in missing:
        (modules / f"{package}.py").write_text("raise ImportError")
    path = os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", "-m", "cylsm", *args]
    options = {"capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run(command, cwd=cwd, env=os.environ | {"PYTHONPATH": path}, **options)


def write_report(tmp_path_factory, *args):
    folder = tmp_path_factory.mktemp("report")
    result = run(*args, "--json", "out.json", cwd=folder, missing=PEERS)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout, folder


def no_constants(text):
    raise AssertionError(f"{text} is no JSON")


def load(path):
    return json.loads(path.read_text(), parse_constant=no_constants)


@pytest.fixture(scope="module")
def accuracy_report(tmp_path_factory):
    stdout, folder = write_report(tmp_path_factory, "accuracy", "--quick")
    assert [path.name for path in folder.iterdir()] == ["out.json"]
    return stdout, load(folder / "out.json")


@pytest.fixture(scope="module")
def bench_report(tmp_path_factory):
    stdout, folder = write_report(tmp_path_factory, "bench", "--quick", "--threads", "1")
    assert [path.name for path in folder.iterdir()] == ["out.json"]
    return stdout, load(folder / "out.json")


@pytest.fixture
def tiny(monkeypatch):
    """Grids of rows that take no time."""
    monkeypatch.setattr(accuracy, "FEWER_ROWS", {2: 3, 5: 2})
    arrays = (((4, 3), -1), ((2, 5, 3), 1), ((2, 1000), -1), ((8, 1000), -1))
    monkeypatch.setattr(bench, "QUICK", bench.Grid(arrays, seconds=0, rounds=1))


def only_cylsm(monkeypatch):
    monkeypatch.setattr(
        _libraries, "PACKAGES", dict.fromkeys(_libraries.PACKAGES, ("no_such_package",)) | {"cylsm": ("cylsm",)}
    )


# accuracy


def test_accuracy_json(accuracy_report):
    _, report = accuracy_report
    assert report.keys() == {"versions", "isa", "exact", "rows", "kinds", "confident", "results"}
    operations = [(result["operation"], result["dtype"]) for result in report["results"]]
    assert operations == [(measure.name, dtype) for dtype in accuracy.DTYPES for measure in accuracy.MEASURES]
    rows = {int(classes): count for classes, count in report["rows"].items()}
    for result in report["results"]:
        assert result.keys() == {"operation", "dtype", "elements", "limit", "grows", "ulp_of", "errors"}
        assert result["errors"].keys() == report["versions"].keys()
        a_row = result["operation"] in ("logsumexp", "cross_entropy", "cross_entropy_with_grad: loss")
        elements = sum(count * (1 if a_row else classes) for classes, count in rows.items())
        assert result["elements"] == elements * len(report["kinds"])
        for errors in result["errors"].values():
            assert 0 < errors["mean_ulp"] < errors["max_ulp"]
            assert errors["max_of_limit"] <= errors["max_ulp"] / result["limit"]


def test_cylsm_keeps_the_limits_that_the_report_states(accuracy_report):
    _, report = accuracy_report
    assert max(result["errors"]["cylsm"]["max_of_limit"] for result in report["results"]) <= 1


@SCIPY
def test_confident_row(accuracy_report):
    stdout, report = accuracy_report
    confident = report["confident"]
    assert confident.keys() == {"exact", "cylsm", "SciPy"}
    assert confident["exact"] == pytest.approx(math.log1p(math.exp(-20)), rel=1e-15)
    assert confident["cylsm"] == pytest.approx(confident["exact"], rel=1e-6)
    assert confident["SciPy"] == 0
    assert stdout.endswith("exact 2.06e-09  cylsm 2.06e-09  SciPy 0\n")


def test_accuracy_table(accuracy_report):
    stdout, report = accuracy_report
    assert "not installed: PyTorch" in stdout.splitlines()[0]
    assert all(len(line) <= 120 for line in stdout.splitlines())
    for measure in accuracy.MEASURES:
        lines = re.findall(rf"^{measure.name}  +(.*)$", stdout, re.M)
        assert len(lines) == len(accuracy.DTYPES)
        for line in lines:
            *numbers, limit = line.split()
            assert all(float(number) >= 0 for number in numbers)
            assert len(numbers) == 3 * len(report["versions"])
            assert limit.endswith("*") == measure.grows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_are_counted_in_ulp(dtype, rng):
    logits = rng.standard_normal((50, 7)).astype(dtype)
    arrays = Arrays(logits, rng.integers(0, 7, 50), axis=-1, reduction="none", rng=rng)
    exact = _exact.ExactRows(arrays).log_softmax
    rounded = exact.astype(dtype)
    magnitude = np.abs(rounded)
    for steps in range(4):
        moved = rounded.copy()
        for _ in range(steps):
            moved = np.nextafter(moved, moved.dtype.type(-np.inf))
        errors = accuracy._distance(moved, exact) / accuracy._ulp(exact, logits.dtype)
        inside = np.frexp(magnitude)[1] == np.frexp(np.abs(moved))[1]  # of a binade
        assert np.all(abs(errors - steps)[inside] <= 0.5 + 1e-3)


def test_what_is_not_a_number_is_an_infinite_error_and_an_underflow_none():
    tiny = float(np.finfo(np.float32).smallest_normal) / 2
    result = np.float32([np.nan, np.inf, 0, 0])
    distance = accuracy._distance(result, _exact.exact(np.array([1.0, 1.0, tiny, 1.0])))
    np.testing.assert_array_equal(distance, [np.inf, np.inf, 0, 1])
    assert accuracy._finite(math.inf) is None


@pytest.mark.skipif(not _exact.LONGDOUBLE_IS_WIDER, reason="longdouble is float64 here")
@pytest.mark.parametrize("kind", accuracy.LOGITS)
def test_decimal_and_longdouble_agree(kind, rng, monkeypatch):
    logits = accuracy.LOGITS[kind](rng, 10, 6)
    arrays = Arrays(logits, rng.integers(0, 6, 10), axis=-1, reduction="none", rng=rng)
    extended = accuracy._expected(_exact.ExactRows(arrays))
    monkeypatch.setattr(_exact, "LONGDOUBLE_IS_WIDER", False)
    with _exact.enough_digits():
        decimal = accuracy._expected(_exact.ExactRows(arrays))
    for name, (value, magnitude) in extended.items():
        # The nearest float64 and what it leaves over.
        high = decimal[name][0].astype(np.float64)
        with _exact.enough_digits():
            low = (decimal[name][0] - _exact.exact(high)).astype(np.float64)
        tolerance = accuracy._ulp(magnitude, np.dtype(np.float64)).astype(np.longdouble) / 100
        # What is left over is itself rounded to a float64.
        tolerance = np.maximum(tolerance, np.finfo(np.float64).smallest_subnormal)
        assert np.all(abs((value - high) - low) <= tolerance), name


def test_accuracy_without_a_wider_longdouble(tiny, monkeypatch, capsys):
    monkeypatch.setattr(_exact, "LONGDOUBLE_IS_WIDER", False)
    only_cylsm(monkeypatch)
    assert main(["accuracy"]) == 0
    stdout = capsys.readouterr().out
    assert "exact results: decimal arithmetic, 40 digits (longdouble is float64 here)\n" in stdout
    assert stdout.endswith("exact 2.06e-09  cylsm 2.06e-09\n")


# bench


def test_bench_json(bench_report):
    _, report = bench_report
    assert report.keys() == {"versions", "isa", "threads", "cells", "summary"}
    keys = {"operation", "dtype", "shape", "axis", "bytes", "seconds", "gb_per_s", "best_peer", "x_peer", "of_limit"}
    assert len(report["cells"]) == len(bench.QUICK.arrays) * len(bench.ARRAYS_MOVED) * len(bench.DTYPES)
    for cell in report["cells"]:
        assert cell.keys() == keys
        seconds = cell["seconds"]
        assert seconds.keys() == {*report["versions"], "new array", "memory"}
        nbytes = math.prod(cell["shape"]) * np.dtype(cell["dtype"]).itemsize
        assert cell["bytes"] == len(bench.ARRAYS_MOVED[cell["operation"]]) * nbytes
        assert cell["gb_per_s"] == pytest.approx({name: cell["bytes"] / s / 1e9 for name, s in seconds.items()})
        assert cell["of_limit"] == pytest.approx(seconds["memory"] / seconds["cylsm"])
        if cell["best_peer"] is not None:
            assert cell["x_peer"] == pytest.approx(seconds[cell["best_peer"]] / seconds["cylsm"])


@SCIPY
def test_bench_summary(bench_report):
    stdout, report = bench_report
    ratios = [cell["x_peer"] for cell in report["cells"]]
    summary = report["summary"]["x_peer"]
    assert summary["cells"] == len(ratios)
    assert summary["geometric_mean"] == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert summary["smallest"] == min(ratios)
    assert f"x best peer: geometric mean {summary['geometric_mean']:.2f} of {len(ratios)} cells" in stdout
    assert summary["smallest_at"] in stdout
    assert report["summary"]["of_limit"] is None  # nothing so large


def test_bench_table(bench_report):
    stdout, report = bench_report
    assert "not installed: PyTorch, ONNX Runtime, JAX" in stdout.splitlines()[0]
    for operation in bench.ARRAYS_MOVED:
        lines = re.findall(rf"^{operation} +(.*)$", stdout, re.M)
        assert len(lines) == len(bench.QUICK.arrays) * len(bench.DTYPES)
        assert {len(line.split()) for line in lines} == {len(report["versions"]) + 5}
    assert stdout.count("float32 64x1000 ") == 1


def test_bench_alone(tiny, monkeypatch, capsys):
    only_cylsm(monkeypatch)
    assert main(["bench", "--quick", "--threads", "1"]) == 0
    stdout, stderr = capsys.readouterr()
    assert "not installed: SciPy, PyTorch, ONNX Runtime, JAX\n" in stdout
    assert "threads 1\n" in stdout
    assert "float64 2x5x3 axis 1 " in stdout
    assert "x best peer" not in stdout
    assert stderr == ""


@SCIPY
def test_a_peer_that_fails_is_left_out(tiny, monkeypatch, capsys):
    def failing_call(operation, arrays):
        if arrays.logits.dtype == np.float64:
            raise ValueError("no doubles\nat all")
        return lambda: None

    only_cylsm(monkeypatch)
    monkeypatch.setitem(_libraries.PACKAGES, "SciPy", ("scipy",))
    monkeypatch.setitem(_libraries.LIBRARIES, "SciPy", failing_call)
    assert main(["bench", "--quick"]) == 0
    stdout, stderr = capsys.readouterr()
    assert stderr.splitlines()[0] == "bench: SciPy left out of logsumexp, float64: no doubles"
    single, double = stdout.split("\nfloat64 ", 1)
    assert not re.search(r"^log_softmax .* - ", single, re.M)
    assert re.search(r"^log_softmax .* - ", double, re.M)


PEERS_AGREE = """
import cylsm
import numpy as np
from cylsm._cli._libraries import LIBRARIES, Arrays, installed_versions, without_warnings

def as_arrays(result):
    return [np.asarray(part).copy() for part in (result if isinstance(result, tuple) else (result,))]

cylsm.set_num_threads(1)
with without_warnings():
    for shape, axis in [((5, 7), -1), ((2, 4, 3), 1)]:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(shape)
        target = rng.integers(0, shape[axis], np.delete(shape, axis))
        for reduction in ("mean", "none"):
            arrays = Arrays(logits, target, axis, reduction, rng)
            for operation in OPERATIONS:
                expected = as_arrays(LIBRARIES["cylsm"](operation, arrays)())
                for library in installed_versions(LIBRARIES):
                    if (library, reduction) == ("JAX", "none"):
                        continue
                    call = LIBRARIES[library](operation, arrays)
                    for got, right in zip(as_arrays(call()) if call else [], expected):
                        np.testing.assert_allclose(got, right, 1e-12, 1e-15, err_msg=f"{library} {operation}")
"""


def test_libraries_compute_the_same(tmp_path):
    operations = sorted({measure.operation for measure in accuracy.MEASURES})
    script = f"OPERATIONS = {operations}\n{PEERS_AGREE}"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_picture(tiny, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    only_cylsm(monkeypatch)
    assert main(["bench", "--quick", "--plot", "out.png"]) == 0
    png = (tmp_path / "out.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n")
    assert 10_000 < len(png) < 100_000


# Both


@pytest.mark.parametrize(
    ("command", "options"),
    [("accuracy", ["--quick", "--json"]), ("bench", ["--quick", "--json", "--plot", "--threads"])],
)
def test_help(command, options, tmp_path):
    result = run(command, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m cylsm {command} ")
    assert all(option in result.stdout for option in options)


@pytest.mark.parametrize(
    ("command", "option", "path", "message"),
    [
        ("accuracy", "--json", "nowhere/out", "cannot write nowhere/out: No such file or directory"),
        ("bench", "--json", "nowhere/out", "cannot write nowhere/out: No such file or directory"),
        ("bench", "--json", "file/out", "cannot write file/out: Not a directory"),
        ("accuracy", "--json", ".", ". is not a regular file"),
    ],
)
def test_unwritable_output_is_one_line_before_any_work(command, option, path, message, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").touch()
    result = run(command, option, path, cwd=folder, timeout=20)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"cylsm {command}: {message}\n")
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_unwritable_plot_is_one_line_before_any_work(tmp_path):
    pytest.importorskip("matplotlib")
    result = run("bench", "--plot", "nowhere/out.png", cwd=tmp_path, timeout=20)
    message = "cylsm bench: cannot write nowhere/out.png: No such file or directory\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)


def test_plot_without_matplotlib(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    result = run("bench", "--plot", "out.png", "--json", "out.json", cwd=folder, missing=["matplotlib"], timeout=20)
    message = 'cylsm bench: --plot needs matplotlib: pip install "cylsm[cli]"\n'
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("threads", ["0", "-1", "two"])
def test_threads_that_are_no_number(threads, tmp_path):
    result = run("bench", f"--threads={threads}", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith(f"error: argument --threads: '{threads}' is no number of threads\n")


@pytest.mark.parametrize("command", ["accuracy", "bench"])
def test_an_old_report_stays_until_the_new_one_is_complete(command, tiny, monkeypatch, tmp_path, capsys):
    only_cylsm(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out.json").write_text("old")

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "_errors", interrupt)
        patch.setattr(bench, "best_times", interrupt)
        assert main([command, "--quick", "--json", "out.json"]) == 130
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out.json": "old"}
    assert main([command, "--quick", "--json", "out.json"]) == 0
    assert "versions" in load(tmp_path / "out.json")
    assert len(list(tmp_path.iterdir())) == 1
