"""How fast this machine moves bytes and does nothing else: the time that no operation can beat.

NumPy's own loops, which release the GIL, on as many threads as cylsm uses: reading is a maximum, copying is
np.copyto, reading two arrays and writing one is np.add. Each thread repeats its share without waiting for the
others, so that what it costs to start a thread does not count.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cylsm._cli._rounds import Repeat

LINE_BYTES = 64


def _read(x: NDArray[Any]) -> None:
    np.maximum.reduce(x)


def _copy(x: NDArray[Any], out: NDArray[Any]) -> None:
    np.copyto(out, x)


def _add(x: NDArray[Any], y: NDArray[Any], out: NDArray[Any]) -> None:
    np.add(x, y, out=out)


MOVES: dict[int, Callable[..., None]] = {1: _read, 2: _copy, 3: _add}


def movers(arrays: list[NDArray[Any]], pool: ThreadPoolExecutor, threads: int) -> dict[str, Repeat]:
    """Ways to read all `arrays` but the last and write that (one array is read); the fastest is the limit."""
    move = MOVES[len(arrays)]
    flat = [array.reshape(-1) for array in arrays]
    line = LINE_BYTES // flat[0].itemsize
    cuts = [flat[0].size * i // threads // line * line for i in range(threads)] + [flat[0].size]
    shares = [[a[start:stop] for a in flat] for start, stop in itertools.pairwise(cuts) if start < stop]

    def repeat(share: list[NDArray[Any]], times: int) -> None:
        for _ in range(times):
            move(*share)

    def on_one_thread(times: int) -> None:
        repeat(flat, times)

    def on_all_threads(times: int) -> None:
        for done in [pool.submit(repeat, share, times) for share in shares]:
            done.result()

    return {"one thread": on_one_thread, "all threads": on_all_threads}
