"""``python -m cylsm``: as a process where streams, signals or exit status matter, else through ``main``."""

import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cylsm._cli import _npy, main, score

NO_TQDM = "raise ImportError"

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, links or descriptors")


def run(*args, cwd, tqdm=None, **options):
    """Run the command with every warning an error, and `tqdm` as the source of the module of that name."""
    # Unbuffered, a failing stream would be noticed at the first print instead of at the end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if tqdm is not None:
        modules = cwd.parent / f"{cwd.name}-modules"
        modules.mkdir(exist_ok=True)
        (modules / "tqdm.py").write_text(tqdm)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(modules), env.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", "-m", "cylsm", *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, cwd=cwd, env=env, text=True, timeout=120, **options)


def parse(stdout):
    """Return the numbers that ``score`` printed, in the order it documents."""
    pattern = r"rows (\d+)\nignored rows (\d+)\nmean NLL (\S+) nats\nperplexity (\S+)\ntop-1 accuracy (\S+)\n"
    match = re.fullmatch(pattern, stdout)
    assert match, stdout
    return tuple(map(float, match.groups()))


def reference_log_probs(logits, axis):
    x = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def reference_score(logits, targets, axis, ignore_index=-100):
    log_probs = np.moveaxis(reference_log_probs(logits, axis), axis, -1)
    rows = log_probs.reshape(-1, log_probs.shape[-1])
    kept = [(row, label) for row, label in zip(rows, targets.reshape(-1), strict=True) if label != ignore_index]
    if not kept:
        return 0, targets.size, math.nan, math.nan, math.nan
    mean = math.fsum(-row[label] for row, label in kept) / len(kept)
    accuracy = np.mean([row.argmax() == label for row, label in kept])
    return len(kept), targets.size - len(kept), mean, math.exp(mean), accuracy


def random_case(shape, axis, dtype="f4", target_dtype="i8"):
    rng = np.random.default_rng(1)
    logits = np.asarray(np.round(200 * rng.standard_normal(shape)) / 64).astype(dtype)
    targets = rng.integers(0, shape[axis], np.delete(shape, axis)).astype(target_dtype)
    return logits, np.asarray(targets)


@pytest.fixture
def files(tmp_path):
    """A folder with logits.npy of shape (6, 4) and targets.npy that fit each other."""
    folder = tmp_path / "files"
    folder.mkdir()
    logits, targets = random_case((6, 4), -1)
    np.save(folder / "logits.npy", logits)
    np.save(folder / "targets.npy", targets)
    return folder


# The demonstration


def test_demo(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    result = run(cwd=folder, tqdm=NO_TQDM)
    assert result.returncode == 0, result.stderr
    assert list(folder.iterdir()) == []

    assert re.match(r"cylsm \S+: instruction set \w+ \(of [\w, ]+\), (no )?OpenMP, threads \d+\n", result.stdout)
    values = {name: float(value) for name, value in re.findall(r"^(\w+ (?:loss|accuracy)) (\S+)$", result.stdout, re.M)}
    assert 0.94 <= values["test accuracy"] <= 1
    assert 0.94 <= values["train accuracy"] <= 1
    assert 0 < values["train loss"] < 0.3
    assert 0 < values["test loss"] < 0.3
    table = re.findall(r"^ *\d+ x \d+ +(.*)$", result.stdout, re.M)
    assert len(table) == 3
    for row in table:
        *rates, difference = map(float, row.split())
        assert len(rates) == 6
        assert min(rates) > 0
        assert 0 <= difference < 1e-5

    epochs = result.stderr.splitlines()
    assert epochs[0].startswith("train: 1 of 30 epochs, loss ")
    assert len(epochs) == 30


# score: results


@pytest.mark.parametrize("block_bytes", [8, 200, score.BLOCK_BYTES])
@pytest.mark.parametrize("fortran_order", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((50, 7), -1),
        ((7, 50), 0),
        ((4, 7, 5, 3), 1),
        ((4, 5, 3, 7), -2),
        ((2, 3, 11), 2),
        ((6, 1), -1),
        ((7,), 0),
        ((0, 7), -1),
        ((7, 3, 0), 0),
    ],
)
def test_score_of_any_layout_in_blocks_of_any_size(
    shape, axis, fortran_order, block_bytes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(score, "BLOCK_BYTES", block_bytes)
    monkeypatch.chdir(tmp_path)
    logits, targets = random_case(shape, axis)
    order = np.asfortranarray if fortran_order else np.ascontiguousarray
    np.save("logits.npy", order(logits).reshape(shape))
    np.save("targets.npy", order(targets).reshape(targets.shape))
    assert main(["score", "logits.npy", "targets.npy", "--axis", str(axis), "--log-probs", "out.npy"]) == 0
    expected = reference_score(logits, targets, axis) if targets.size else (0, 0, math.nan, math.nan, math.nan)
    np.testing.assert_allclose(parse(capsys.readouterr().out), expected, rtol=1e-6)
    log_probs = np.load("out.npy")
    assert log_probs.dtype == np.float32
    assert log_probs.flags.f_contiguous == np.load("logits.npy").flags.f_contiguous
    assert log_probs.shape == shape
    if targets.size:
        np.testing.assert_allclose(log_probs, reference_log_probs(logits, axis), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "log_probs_dtype", "tolerance"),
    [
        ("f2", "f2", 1e-3),
        ("f4", "f4", 1e-6),
        ("f8", "f8", 1e-14),
        (">f2", "f2", 1e-3),
        (">f4", "f4", 1e-6),
        (">f8", "f8", 1e-14),
        ("i1", "f8", 1e-14),
        (">u4", "f8", 1e-14),
        ("?", "f8", 1e-14),
    ],
)
def test_score_of_every_dtype(dtype, log_probs_dtype, tolerance, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logits, targets = random_case((40, 9), -1, dtype if dtype != ">u4" else "u4")
    logits = (logits % 50).astype(dtype) if dtype == ">u4" else logits
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    assert main(["score", "logits.npy", "targets.npy", "--log-probs", "out.npy"]) == 0
    np.testing.assert_allclose(
        parse(capsys.readouterr().out),
        reference_score(logits, targets, -1),
        rtol=max(1e-9, min(tolerance, 1e-6)),
    )
    log_probs = np.load("out.npy")
    assert log_probs.dtype == np.dtype(log_probs_dtype)
    np.testing.assert_allclose(log_probs, reference_log_probs(logits, -1), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("target_dtype", "ignore_index", "arguments"),
    [
        ("i8", -100, []),
        ("i8", -1, ["--ignore-index", "-1"]),
        (">i2", 3, ["--ignore-index", "3"]),
        ("u1", 255, ["--ignore-index", "255"]),
        ("u8", 2**64 - 100, ["--ignore-index", str(2**64 - 100)]),
        ("u1", 256, ["--ignore-index", "256"]),
    ],
)
def test_ignored_rows_do_not_count(target_dtype, ignore_index, arguments, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    logits, targets = random_case((40, 9), -1, target_dtype=target_dtype)
    if ignore_index != 256:
        targets[[0, 7, 39]] = ignore_index
        logits[0] = np.nan
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    assert main(["score", "logits.npy", "targets.npy", *arguments]) == 0
    printed = parse(capsys.readouterr().out)
    assert printed[0] + printed[1] == 40
    np.testing.assert_allclose(printed, reference_score(logits, targets, -1, ignore_index), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "targets", "expected"),
    [
        pytest.param([[0.0, -20]], [0], (1, 0, 2.0611536e-09, 1.000000002, 1), id="confident"),
        pytest.param([[0.0, -1e4]], [1], (1, 0, 1e4, np.inf, 0), id="perplexity-overflows"),
        pytest.param([[0.0, -np.inf]], [1], (1, 0, np.inf, np.inf, 0), id="impossible"),
        pytest.param([[np.nan, 0.0]], [0], (1, 0, np.nan, np.nan, 0), id="nan-predicts-nothing"),
        pytest.param([[1.0, 1.0]], [0], (1, 0, np.log(2), 2, 1), id="tie"),
        pytest.param([[1.0, 1.0]], [-100], (0, 1, np.nan, np.nan, np.nan), id="all-ignored"),
        pytest.param(np.float16([[6e4, -6e4]]), [1], (1, 0, 1.2e5, np.inf, 0), id="half-overflows"),
    ],
)
def test_extreme_values_print_no_warning(logits, targets, expected, files):
    np.save(files / "logits.npy", np.asarray(logits, getattr(logits, "dtype", np.float32)))
    np.save(files / "targets.npy", targets)
    result = run("score", "logits.npy", "targets.npy", "--log-probs", "out.npy", cwd=files, tqdm=NO_TQDM)
    assert result.returncode == 0
    assert result.stderr == "score: 1 of 1 rows\n"
    np.testing.assert_allclose(parse(result.stdout), expected, rtol=1e-3)


def test_mean_is_that_of_the_rows_in_double_precision(files):
    # Added up in single precision, the small losses would vanish beside the large one.
    logits = np.zeros((100_000, 2), np.float32)
    logits[:, 1] = -12
    logits[0, 1] = 1e6
    np.save(files / "logits.npy", logits)
    np.save(files / "targets.npy", np.zeros(len(logits), np.uint8))
    result = run("score", "logits.npy", "targets.npy", cwd=files, tqdm=NO_TQDM)
    mean = (1e6 + 99_999 * np.log1p(np.exp(-12.0))) / 100_000
    np.testing.assert_allclose(parse(result.stdout)[2], mean, rtol=1e-9)


@pytest.mark.parametrize("fortran_order", [False, True])
@pytest.mark.parametrize("class_axis", [None, 0, 1, 2])
@pytest.mark.parametrize("block_size", [1, 5, 12, 59, 60, 10**6])
def test_blocks_partition_the_array_into_runs(class_axis, fortran_order, block_size):
    shape = (4, 3, 5)
    order = "F" if fortran_order else "C"
    visits = np.zeros(shape, int, order)
    row = 1 if class_axis is None else shape[class_axis]
    for index in score._blocks(shape, fortran_order, class_axis, block_size):
        visits[index] += 1
        assert visits[index].size <= max(block_size, row)
        if class_axis is None:
            assert visits[index].flags[f"{order}_CONTIGUOUS"]
    assert np.all(visits == 1)


@posix
@pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="AddressSanitizer's shadow takes more memory than is allowed")
def test_file_is_not_held_in_memory(files):
    rows, classes = 4096, 65536
    # A sparse file: a gigabyte that takes no room on disk.
    np.lib.format.open_memmap(files / "logits.npy", mode="w+", dtype=np.float32, shape=(rows, classes))
    np.save(files / "targets.npy", np.zeros(rows, np.int32))
    child = (
        "import json, resource, sys; from cylsm._cli import main; status = main(sys.argv[1:]);"
        "print(json.dumps([status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))"
    )
    arguments = ["-c", child, "score", "logits.npy", "targets.npy"]
    result = subprocess.run([sys.executable, *arguments], cwd=files, capture_output=True, text=True, timeout=120)
    *report, last = result.stdout.splitlines(keepends=True)
    assert parse("".join(report))[:2] == (rows, 0)
    np.testing.assert_allclose(parse("".join(report))[2], np.log(classes), rtol=1e-6)
    status, peak = json.loads(last)
    kibibytes = 1 if sys.platform == "linux" else 1024
    assert (status, peak / kibibytes < 512 * 1024) == (0, True), peak


# score: progress


def test_progress_is_a_line_a_block_without_tqdm(files):
    rows = 2 * score.BLOCK_BYTES // 4 // 256 + 1
    logits, targets = random_case((rows, 256), -1, "f2")
    np.save(files / "logits.npy", logits)
    np.save(files / "targets.npy", targets)
    result = run("score", "logits.npy", "targets.npy", cwd=files, tqdm=NO_TQDM)
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(rf"score: \d+ of {rows} rows", line) for line in lines)
    assert lines[-1] == f"score: {rows} of {rows} rows"
    np.testing.assert_allclose(parse(result.stdout), reference_score(logits, targets, -1), rtol=1e-6)


def test_progress_lines_are_bounded(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    monkeypatch.setattr(score, "BLOCK_BYTES", 8)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    logits, targets = random_case((5000, 2), -1)
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    assert main(["score", "logits.npy", "targets.npy"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 100
    assert lines[-1] == "score: 5000 of 5000 rows"


def test_progress_is_a_bar_with_tqdm(files):
    pytest.importorskip("tqdm")
    result = run("score", "logits.npy", "targets.npy", cwd=files)
    assert result.returncode == 0
    assert "score: 100%|" in result.stderr


# score: what it writes


@posix
def test_log_probs_replace_a_file_through_a_link_and_keep_its_mode(files):
    old = files / "old.npy"
    old.write_bytes(b"old")
    old.chmod(0o640)
    (files / "link.npy").symlink_to(old)
    assert run("score", "logits.npy", "targets.npy", "--log-probs", "link.npy", cwd=files).returncode == 0
    assert (files / "link.npy").is_symlink()
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    log_probs = reference_log_probs(np.load(files / "logits.npy"), -1)
    np.testing.assert_allclose(np.load(old), log_probs, rtol=1e-5, atol=1e-6)


def test_new_file_has_the_usual_mode(files):
    assert run("score", "logits.npy", "targets.npy", "--log-probs", "out.npy", cwd=files).returncode == 0
    (files / "usual").touch()
    assert (files / "out.npy").stat().st_mode == (files / "usual").stat().st_mode


# score: failures


def damage(name, change):
    def damaged(folder):
        change(folder / name)

    return damaged


def store(name, array, **options):
    return damage(name, lambda path: np.save(path, np.asarray(array), **options))


def cut(name, size):
    return damage(name, lambda path: path.write_bytes(path.read_bytes()[:size]))


def edit(name, old, new):
    return damage(name, lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1)))


def link_to_logits(folder):
    (folder / "out.npy").hardlink_to(folder / "logits.npy")


LABELS = [0, 1, 2, 3, 0]

FAILURES = {
    "missing": (damage("logits.npy", Path.unlink), "cannot read logits.npy: No such file or directory"),
    "missing-targets": (
        damage("targets.npy", Path.unlink),
        "cannot read targets.npy: No such file or directory",
    ),
    "directory": (
        damage("logits.npy", lambda p: (p.unlink(), p.mkdir())),
        "logits.npy is not a regular file",
    ),
    "empty": (cut("logits.npy", 0), "logits.npy is not a .npy file"),
    "text": (
        damage("targets.npy", lambda p: p.write_text("0\n1\n2\n3\n0\n1\n")),
        "targets.npy is not a .npy file",
    ),
    "zip": (edit("logits.npy", b"\x93NUMPY", b"PK\x03\x04\x14\x00"), "logits.npy is not a .npy file"),
    "version": (
        edit("logits.npy", b"NUMPY\x01", b"NUMPY\x09"),
        "logits.npy has a damaged or incomplete .npy header",
    ),
    "cut-in-magic": (cut("logits.npy", 7), "logits.npy has a damaged or incomplete .npy header"),
    "cut-in-header": (cut("logits.npy", 50), "logits.npy has a damaged or incomplete .npy header"),
    "header-not-python": (
        edit("logits.npy", b"(6, 4)", b"((6, 4"),
        "logits.npy has a damaged or incomplete .npy header",
    ),
    "negative-shape": (
        edit("logits.npy", b"(6, 4)", b"(-6,4)"),
        "logits.npy has a damaged or incomplete .npy header",
    ),
    "cut-in-data": (
        cut("logits.npy", 223),
        "logits.npy is cut short: its header announces 224 bytes, it has 223",
    ),
    "cut-targets": (
        cut("targets.npy", 128),
        "targets.npy is cut short: its header announces 176 bytes, it has 128",
    ),
    "pickle": (
        store("logits.npy", np.array([[1, None]], object), allow_pickle=True),
        "logits.npy holds pickled Python objects, not numbers",
    ),
    "complex": (
        store("logits.npy", np.zeros((6, 4), complex)),
        "logits.npy holds complex128, but logits are real numbers of at most 64 bits",
    ),
    "strings": (
        store("logits.npy", np.full((6, 4), "a")),
        "logits.npy holds <U1, but logits are real numbers of at most 64 bits",
    ),
    "floating-targets": (
        store("targets.npy", np.zeros(6)),
        "targets.npy holds float64, but labels are integers",
    ),
    "boolean-targets": (
        store("targets.npy", np.zeros(6, bool)),
        "targets.npy holds bool, but labels are integers",
    ),
    "targets-too-short": (
        store("targets.npy", LABELS),
        "targets.npy has shape (5,), but logits.npy of shape (6, 4) with classes on axis 1 needs (6,)",
    ),
    "targets-of-another-shape": (
        store("targets.npy", np.zeros((6, 1), int)),
        "targets.npy has shape (6, 1), but logits.npy of shape (6, 4) with classes on axis 1 needs (6,)",
    ),
    "scalar-logits": (store("logits.npy", 1.0), "logits.npy has no axis -1: its shape is ()"),
    "no-classes": (
        store("logits.npy", np.zeros((6, 0))),
        "logits.npy has no classes: its shape is (6, 0), classes on axis 1",
    ),
    "label-in-last-row": (
        store("targets.npy", [*LABELS, 4]),
        "targets.npy[5] = 4 is out of range for 4 classes",
    ),
    "negative-label": (
        store("targets.npy", [*LABELS, -1]),
        "targets.npy[5] = -1 is out of range for 4 classes",
    ),
    "unsigned-label": (
        store("targets.npy", np.array([*LABELS, 2**64 - 100], np.uint64)),
        "targets.npy[5] = 18446744073709551516 is out of range for 4 classes",
    ),
    "out-is-a-directory": (lambda folder: (folder / "out.npy").mkdir(), "out.npy is not a regular file"),
    "out-is-an-input": (link_to_logits, "--log-probs out.npy would overwrite logits.npy"),
}


@pytest.mark.parametrize(("prepare", "message"), FAILURES.values(), ids=FAILURES)
def test_failure_is_one_line_and_leaves_no_file(prepare, message, files):
    prepare(files)
    before = sorted(files.iterdir())
    result = run("score", "logits.npy", "targets.npy", "--log-probs", "out.npy", cwd=files)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"cylsm score: {message}\n")
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--axis", "2"], "logits.npy has no axis 2: its shape is (6, 4)"),
        (["--axis", "-3"], "logits.npy has no axis -3: its shape is (6, 4)"),
        (
            ["--axis", "0"],
            "targets.npy has shape (6,), but logits.npy of shape (6, 4) with classes on axis 0 needs (4,)",
        ),
        (["--log-probs", "nowhere/out.npy"], "cannot write nowhere/out.npy: No such file or directory"),
        (["--log-probs", "logits.npy/out.npy"], "cannot write logits.npy/out.npy: Not a directory"),
        (["--log-probs", "./targets.npy"], "--log-probs ./targets.npy would overwrite targets.npy"),
    ],
)
def test_unfit_argument_is_one_line(arguments, message, files):
    before = sorted(files.iterdir())
    result = run("score", "logits.npy", "targets.npy", *arguments, cwd=files)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"cylsm score: {message}\n")
    assert sorted(files.iterdir()) == before


@posix
@pytest.mark.parametrize("name", ["logits.npy", "out.npy"])
def test_pipe_is_no_file(name, files):
    (files / name).unlink(missing_ok=True)
    os.mkfifo(files / name)
    result = run("score", "logits.npy", "targets.npy", "--log-probs", "out.npy", cwd=files)
    message = f"cylsm score: {name} is not a regular file\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
    assert (files / name).is_fifo()


@pytest.mark.parametrize("block_bytes", [8, score.BLOCK_BYTES])
def test_place_of_a_label_is_that_in_the_file(block_bytes, files, monkeypatch, capsys):
    monkeypatch.setattr(score, "BLOCK_BYTES", block_bytes)
    monkeypatch.chdir(files)
    targets = np.zeros((3, 2, 5), int)
    targets[-1, -1, -1] = 7
    np.save("logits.npy", np.zeros((3, 7, 2, 5)))
    np.save("targets.npy", targets)
    assert main(["score", "logits.npy", "targets.npy", "--axis", "1"]) == 2
    message = "cylsm score: targets.npy[2, 1, 4] = 7 is out of range for 7 classes\n"
    assert capsys.readouterr().err == message


def test_single_label_out_of_range(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    np.save("logits.npy", np.zeros(4))
    np.save("targets.npy", 4)
    assert main(["score", "logits.npy", "targets.npy"]) == 2
    assert capsys.readouterr().err == "cylsm score: targets.npy = 4 is out of range for 4 classes\n"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs an operating system that can reserve")
def test_room_is_reserved_before_anything_is_mapped(tmp_path):
    with _npy.created(str(tmp_path / "out.npy"), (1000, 1000), False, np.dtype(np.float32)) as array:
        assert 512 * os.fstat(array.file.fileno()).st_blocks >= 4e6


@posix
def test_no_room_for_the_log_probs(files):
    import resource  # not on Windows

    np.save(files / "logits.npy", np.zeros((1000, 1000), np.float32))
    np.save(files / "targets.npy", np.zeros(1000, int))
    (files / "out.npy").write_bytes(b"old")
    before = sorted(files.iterdir())
    result = run(
        *("score", "logits.npy", "targets.npy", "--log-probs", "out.npy"),
        cwd=files,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    message = "cylsm score: cannot write out.npy: File too large\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)
    assert sorted(files.iterdir()) == before
    assert (files / "out.npy").read_bytes() == b"old"


SIGNAL_AT_FIRST_BLOCK = """
import contextlib, os, signal, types

@contextlib.contextmanager
def tqdm(**options):
    assert any(name.endswith(".part") for name in os.listdir())
    yield types.SimpleNamespace(
        set_postfix_str=lambda *args, **kwargs: None, update=lambda n: os.kill(os.getpid(), signal.{name})
    )
"""


@posix
@pytest.mark.parametrize(
    ("name", "status", "stderr"),
    [("SIGINT", 130, "cylsm score: interrupted\n"), ("SIGTERM", 143, ""), ("SIGHUP", 129, "")],
)
def test_signal_leaves_no_partial_file(name, status, stderr, files):
    before = sorted(files.iterdir())
    result = run(
        *("score", "logits.npy", "targets.npy", "--log-probs", "out.npy"),
        cwd=files,
        tqdm=SIGNAL_AT_FIRST_BLOCK.format(name=name),
        # A shell may start a test run with signals ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    )
    assert (result.returncode, result.stdout, result.stderr) == (status, "", stderr)
    assert sorted(files.iterdir()) == before


# Every form


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], ["usage: python -m cylsm ", "score", "--version"]),
        (["score", "--help"], ["usage: python -m cylsm score ", "--axis", "--ignore-index", "--log-probs"]),
        (["--version"], ["cylsm "]),
    ],
)
def test_help(arguments, expected, tmp_path):
    result = run(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(expected[0])
    assert all(text in result.stdout for text in expected)


@pytest.mark.parametrize(
    "arguments",
    [["unknown"], ["score"], ["score", "logits.npy"], ["score", "logits.npy", "targets.npy", "--axis", "x"]],
)
def test_usage_error(arguments, files):
    result = run(*arguments, cwd=files)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: python -m cylsm")
    assert "error: " in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("streams", "stderr"),
    [(["stdout"], "score: 6 of 6 rows\n"), (["stderr"], None), (["stdout", "stderr"], None)],
)
def test_closed_pipe_ends_in_silence(streams, stderr, files):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        closed = dict.fromkeys(streams, writer)
        result = run("score", "logits.npy", "targets.npy", cwd=files, tqdm=NO_TQDM, **closed)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, stderr)
    assert not result.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_full_standard_output(files):
    with open("/dev/full", "w") as full:
        result = run("score", "logits.npy", "targets.npy", cwd=files, tqdm=NO_TQDM, stdout=full)
    assert result.returncode == 2
    _, message = result.stderr.splitlines()
    assert message == "cylsm: cannot write to standard output: No space left on device"


@posix
def test_closed_standard_error(files):
    result = run("score", "logits.npy", "targets.npy", cwd=files, stderr=None, preexec_fn=lambda: os.close(2))
    assert result.returncode == 0
    assert parse(result.stdout)[0] == 6
