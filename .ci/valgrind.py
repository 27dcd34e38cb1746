"""Calls of every function on each instruction set, arrays between pages that may not be touched: for valgrind."""

import sys
from pathlib import Path

import numpy as np

import cylsm
from cylsm import _driver

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import layouts
import test_tails

rooms = [test_tails.Room() for _ in range(4)]
rng = np.random.default_rng(1)
for isa in cylsm.show_config(mode="dicts")["available_isas"]:
    _driver._use_isa(isa)
    for dtype in (np.float16, np.float32, np.float64):
        for function, arguments, options in test_tails.CALLS:
            for layout in (np.asarray, layouts.reversed_axes):
                for shape, axis in (((7, 9), 1), ((66, 22), 1), ((9, 66), 0), ((3, 100), 1)):
                    made = arguments(test_tails.softly(rng, shape, dtype), axis, rng)
                    test_tails.assert_stays_inside(
                        rooms, function, made, options | {"axis": axis}, test_tails.BORDERS, layout
                    )
    print(f"{isa}: done")
