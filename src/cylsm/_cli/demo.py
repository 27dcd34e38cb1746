"""``python -m cylsm``: what cylsm does, on this machine, in a few seconds.

Trains softmax regression on 1,797 handwritten digits of 8x8 pixels, then times log_softmax beside the formula
that NumPy users write. The digits are the test part of "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed
under CC BY 4.0 and shipped by scikit-learn; ``digits.txt`` says more.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cylsm
from cylsm._cli._progress import progress

SEED = 0
TRAIN_ROWS = 1347
EPOCHS = 30
BATCH = 32
LEARNING_RATE = 0.5

# (rows, classes) that stay in the first-level cache, in a larger one, and in none.
TIMED_SHAPES = [(64, 10), (1024, 1000), (512, 32000)]
TIMED_SECONDS = 0.3

Float32 = NDArray[np.float32]
Labels = NDArray[np.int64]


def run(args: argparse.Namespace) -> None:
    """Print the configuration, the digits' losses and accuracies, and the table of times."""
    _print_configuration()
    print()
    _train_digits()
    print()
    _compare_with_numpy()


def _print_configuration() -> None:
    config = cylsm.show_config(mode="dicts")
    available = ", ".join(config["available_isas"])
    print(
        f"cylsm {config['version']}: instruction set {config['isa']} (of {available}), "
        f"{'OpenMP' if config['openmp'] else 'no OpenMP'}, threads {config['num_threads']}"
    )


def _train_digits() -> None:
    pixels, labels = _load_digits()
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(len(labels))
    train, test = shuffled[:TRAIN_ROWS], shuffled[TRAIN_ROWS:]
    print(f"softmax regression on {len(labels)} handwritten digits, {len(train)} of them to train")

    weights = np.zeros((pixels.shape[1], 10), np.float32)
    bias = np.zeros(10, np.float32)
    with progress("train", EPOCHS, "epochs") as advance:
        for _ in range(EPOCHS):
            losses = []
            for batch in np.array_split(rng.permutation(train), TRAIN_ROWS // BATCH):
                logits = pixels[batch] @ weights + bias
                loss, gradient = cylsm.cross_entropy_with_grad(logits, labels[batch], out=logits)
                weights -= LEARNING_RATE * (pixels[batch].T @ gradient)
                bias -= LEARNING_RATE * gradient.sum(axis=0)
                losses.append(loss)
            advance(1, f"loss {np.mean(losses):.4f}")

    for name, rows in [("train", train), ("test", test)]:
        logits = pixels[rows] @ weights + bias
        print(f"{name} loss {cylsm.cross_entropy(logits, labels[rows]):.4f}")
        print(f"{name} accuracy {np.mean(logits.argmax(axis=1) == labels[rows]):.4f}")


def _load_digits() -> tuple[Float32, Labels]:
    """Pixels in [0, 1], one image a row, and the digits they show."""
    with resources.files("cylsm._cli").joinpath("digits.npz").open("rb") as file, np.load(file) as digits:
        return digits["pixels"] / np.float32(16), digits["labels"].astype(np.int64)


def _numpy_log_softmax(x: Float32) -> Float32:
    shifted = x - x.max(axis=-1, keepdims=True)
    log_probs: Float32 = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probs


def _compare_with_numpy() -> None:
    print("log_softmax of float32, beside NumPy's x - max, exp, log (GB/s: x read once, result written once)")
    print()
    print(f"{'':>13}  {'microseconds a call':^32}  {'GB/s':^26}  {'largest':>10}")
    columns = f"{'NumPy':>10}{'cylsm':>10}{'cylsm out=':>12}  {'NumPy':>7}{'cylsm':>7}{'cylsm out=':>12}"
    print(f"{'array':>13}  {columns}  {'difference':>10}")
    rng = np.random.default_rng(SEED)
    for shape in TIMED_SHAPES:
        x = rng.standard_normal(shape, np.float32)
        out = np.empty_like(x)
        difference = np.max(np.abs(_numpy_log_softmax(x) - cylsm.log_softmax(x, out=out)))
        seconds = [
            _seconds_a_call(partial(_numpy_log_softmax, x)),
            _seconds_a_call(partial(cylsm.log_softmax, x)),
            _seconds_a_call(partial(cylsm.log_softmax, x, out=out)),
        ]
        numpy_us, fresh_us, out_us = (1e6 * s for s in seconds)
        numpy_rate, fresh_rate, out_rate = (2e-9 * x.nbytes / s for s in seconds)
        print(
            f"{f'{shape[0]} x {shape[1]}':>13}  {numpy_us:10.1f}{fresh_us:10.1f}{out_us:12.1f}  "
            f"{numpy_rate:7.2f}{fresh_rate:7.2f}{out_rate:12.2f}  {difference:10.1e}"
        )


def _seconds_a_call(call: Callable[[], Any]) -> float:
    """Time many repeats and keep the shortest: whatever else the machine did only ever adds."""
    call()
    calls = 1
    shortest = np.inf
    deadline = time.perf_counter() + TIMED_SECONDS
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        elapsed = time.perf_counter() - start
        shortest = min(shortest, elapsed / calls)
        # The clock's own cost must not show in a call of a microsecond.
        if elapsed < 1e-3:
            calls *= 2
    return shortest
