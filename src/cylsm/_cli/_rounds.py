"""Times of calls that take turns, so that their ratios hold on a machine whose speed drifts."""

import math
import time
from collections.abc import Callable, Mapping

# Runs a call that many times.
Repeat = Callable[[int], None]

# Long enough for the threads of the library before, which spin for a while, to go to sleep.
PAUSE_SECONDS = 0.004
# Short calls are repeated this long in a turn, or the clock's own cost would show.
TURN_SECONDS = 0.001


def best_times(calls: Mapping[str, Repeat], seconds: float, least_rounds: int) -> dict[str, float]:
    """The shortest time of each call, in seconds: whatever else the machine does only ever adds.

    All take turns until `seconds` are over and `least_rounds` done. A turn starts with a pause and an untimed call.
    """
    repeats = {}
    for name, repeat in calls.items():
        repeat(1)
        repeats[name] = max(1, math.ceil(TURN_SECONDS / max(_seconds(repeat, 1), 1e-7)))
    best = dict.fromkeys(calls, math.inf)
    deadline = time.perf_counter() + seconds
    rounds = 0
    while rounds < least_rounds or time.perf_counter() < deadline:
        for name, repeat in calls.items():
            time.sleep(PAUSE_SECONDS)
            repeat(1)
            best[name] = min(best[name], _seconds(repeat, repeats[name]) / repeats[name])
        rounds += 1
    return best


def _seconds(repeat: Repeat, times: int) -> float:
    start = time.perf_counter()
    repeat(times)
    return time.perf_counter() - start
