"""``python -m cylsm score``: how well stored logits predict stored labels, for arrays larger than memory too.

The arrays are memory-mapped and scored block by block. Every block is first brought into one form, rows of
classes in native float32 or float64, so memory order, class axis and dtype matter nowhere else.
"""

import argparse
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cylsm
from cylsm._cli._errors import InputError
from cylsm._cli._npy import NpyFile, created, opened
from cylsm._cli._progress import progress

# Large enough that a block's overhead vanishes, small enough that a few copies of it fit any machine.
BLOCK_BYTES = 32 * 2**20

# What ignored labels are turned into, whatever value and dtype they had in the file.
IGNORED = -100


@dataclass
class Score:
    """Sums over the rows seen so far."""

    counted: int = 0
    ignored: int = 0
    correct: int = 0
    nll: list[float] = field(default_factory=list)  # one sum a block, added pairwise in the end

    @property
    def mean_nll(self) -> float:
        return float(np.sum(self.nll) / self.counted) if self.counted else math.nan

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.mean_nll))

    @property
    def accuracy(self) -> float:
        return self.correct / self.counted if self.counted else math.nan


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register ``score``."""
    parser = commands.add_parser(
        "score",
        help="mean NLL, perplexity and top-1 accuracy of stored logits",
        description="Score logits against labels: rows, mean negative log-likelihood in nats, perplexity and "
        "top-1 accuracy (of equal logits the first wins). Files are read block by block and may be larger "
        "than memory. Results go to standard output, progress to standard error.",
    )
    parser.add_argument("logits", metavar="LOGITS.npy", help="real numbers, not necessarily normalised")
    parser.add_argument("targets", metavar="TARGETS.npy", help="integers, shaped as the logits less that axis")
    parser.add_argument("--axis", type=int, default=-1, metavar="A", help="the class axis (default: the last)")
    parser.add_argument(
        "--ignore-index",
        type=int,
        default=-100,
        metavar="I",
        help="rows with this label do not count (default: %(default)s)",
    )
    parser.add_argument("--log-probs", metavar="OUT.npy", help="also write the logits' log_softmax to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the score of ``args.logits``."""
    # A nan, an infinity or an overflow is a result here, and shown as one.
    with np.errstate(all="ignore"), opened(args.logits) as logits, opened(args.targets) as targets:
        float_dtype = _float_dtype(logits)
        axis = _class_axis(logits, targets, args.axis)
        _check_labels(targets, logits.shape[axis], args.ignore_index)
        with _log_probs(args.log_probs, logits, targets, float_dtype) as log_probs:
            score = _score(logits, targets, axis, args.ignore_index, float_dtype, log_probs)
        print(f"rows {score.counted}")
        print(f"ignored rows {score.ignored}")
        print(f"mean NLL {score.mean_nll:.10g} nats")
        print(f"perplexity {score.perplexity:.10g}")
        print(f"top-1 accuracy {score.accuracy:.10g}")


def _float_dtype(logits: NpyFile) -> np.dtype[Any]:
    """Choose the dtype to compute in; it holds every value of a float dtype exactly."""
    kind, itemsize = logits.dtype.kind, logits.dtype.itemsize
    if kind == "f" and itemsize <= 4:
        return np.dtype(np.float32)
    if kind in "biu" or (kind == "f" and itemsize == 8):
        return np.dtype(np.float64)
    raise InputError(f"{logits.path} holds {logits.dtype}, but logits are real numbers of at most 64 bits")


def _class_axis(logits: NpyFile, targets: NpyFile, axis: int) -> int:
    """Check that the files fit the axis and each other; return the axis counted from the front."""
    ndim = len(logits.shape)
    if not -ndim <= axis < ndim:
        raise InputError(f"{logits.path} has no axis {axis}: its shape is {logits.shape}")
    axis %= ndim
    if logits.shape[axis] == 0:
        raise InputError(f"{logits.path} has no classes: its shape is {logits.shape}, classes on axis {axis}")
    expected = _without(logits.shape, axis)
    if targets.shape != expected:
        raise InputError(
            f"{targets.path} has shape {targets.shape}, but {logits.path} of shape {logits.shape} "
            f"with classes on axis {axis} needs {expected}"
        )
    if targets.dtype.kind not in "iu":
        raise InputError(f"{targets.path} holds {targets.dtype}, but labels are integers")
    return axis


def _check_labels(targets: NpyFile, classes: int, ignore_index: int) -> None:
    # All of them before the first block is scored: a bad last label should not cost an hour.
    block_size = BLOCK_BYTES // targets.dtype.itemsize
    for index in _blocks(targets.shape, targets.fortran_order, None, block_size):
        labels = targets.map()[index]
        wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
        if wrong.any():
            first = np.unravel_index(np.argmax(wrong), wrong.shape)
            place = [int(i) + along.start for i, along in zip(first, index, strict=True)]
            name = f"{targets.path}{place}" if place else targets.path
            raise InputError(f"{name} = {labels[first]} is out of range for {classes} classes")


def _log_probs(
    path: str | None, logits: NpyFile, targets: NpyFile, float_dtype: np.dtype[Any]
) -> AbstractContextManager[NpyFile | None]:
    """Create the file of log-probabilities, if one is wanted, in the layout of the logits."""
    if path is None:
        return nullcontext()
    for source in (logits, targets):
        if os.path.exists(path) and os.path.samefile(path, source.path):
            raise InputError(f"--log-probs {path} would overwrite {source.path}")
    half = logits.dtype.kind == "f" and logits.dtype.itemsize == 2
    dtype = np.dtype(np.float16) if half else float_dtype
    return created(path, logits.shape, logits.fortran_order, dtype)


def _score(
    logits: NpyFile,
    targets: NpyFile,
    axis: int,
    ignore_index: int,
    float_dtype: np.dtype[Any],
    log_probs: NpyFile | None,
) -> Score:
    """Score every block, and write its log-probabilities where `log_probs` is given."""
    score = Score()
    block_size = BLOCK_BYTES // float_dtype.itemsize
    with progress("score", math.prod(targets.shape), "rows") as advance:
        for index in _blocks(logits.shape, logits.fortran_order, axis, block_size):
            block = np.moveaxis(logits.map()[index], axis, -1)
            rows = np.ascontiguousarray(block, float_dtype).reshape(-1, block.shape[-1])
            labels = targets.map()[_without(index, axis)].reshape(-1)
            _add(score, rows, labels, ignore_index)
            if log_probs is not None:
                out = np.moveaxis(log_probs.map()[index], axis, -1)
                out[...] = cylsm.log_softmax(rows).reshape(block.shape)
            advance(len(rows), "")
    return score


def _add(score: Score, rows: NDArray[Any], labels: NDArray[Any], ignore_index: int) -> None:
    ignored = labels == ignore_index
    target = labels.astype(np.int64)
    target[ignored] = IGNORED
    nll = cylsm.cross_entropy(rows, target, ignore_index=IGNORED, reduction="none")
    score.nll.append(float(np.sum(nll, dtype=np.float64)))
    score.ignored += int(ignored.sum())
    score.counted += int((~ignored).sum())
    top = rows.argmax(axis=-1)
    # NumPy takes the first nan for the largest: such a row predicts nothing.
    predicts = ~np.isnan(np.take_along_axis(rows, top[:, np.newaxis], axis=-1)[:, 0])
    score.correct += int(((top == target) & predicts).sum())


def _blocks(
    shape: tuple[int, ...], fortran_order: bool, class_axis: int | None, block_size: int
) -> Iterator[tuple[slice, ...]]:
    """Cut an array into blocks of at most `block_size` elements, or of one row where a row is longer.

    `class_axis` stays whole. The others are cut outermost in memory first, so that a block is as few runs of
    the file as possible.
    """
    if 0 in shape:
        return iter(())
    extents = list(shape)
    axes = [axis for axis in range(len(shape)) if axis != class_axis]
    for axis in reversed(axes) if fortran_order else axes:
        longest = max(1, block_size // (math.prod(extents) // extents[axis]))
        pieces = math.ceil(extents[axis] / longest)
        extents[axis] = math.ceil(extents[axis] / pieces)
    ranges = [
        [slice(start, min(start + extent, length)) for start in range(0, length, extent)]
        for length, extent in zip(shape, extents, strict=True)
    ]
    return itertools.product(*ranges)


def _without(items: Sequence[Any], axis: int) -> tuple[Any, ...]:
    return (*items[:axis], *items[axis + 1 :])
