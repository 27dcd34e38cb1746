"""Progress on standard error: tqdm's bar where tqdm is installed, printed lines where it is not."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Printed lines stay readable in a log however many steps there are.
MAX_LINES = 100

Advance = Callable[[int, str], None]


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how many of `total` units are done; call what is yielded with the units of a step and a remark."""
    tqdm = _tqdm()
    if tqdm is None:
        yield _printed(title, total, unit)
        return
    # tqdm scales 30 to 30.0: only where the numbers are long is that easier to read.
    with tqdm(total=total, desc=title, unit=f" {unit}", unit_scale=total >= 100_000, file=sys.stderr) as bar:

        def advance(amount: int, remark: str) -> None:
            bar.set_postfix_str(remark, refresh=False)
            bar.update(amount)

        yield advance


def _tqdm() -> Any:
    try:
        return importlib.import_module("tqdm").tqdm
    except ImportError:
        return None


def _printed(title: str, total: int, unit: str) -> Advance:
    done = 0

    def advance(amount: int, remark: str) -> None:
        nonlocal done
        lines_before = done * MAX_LINES // total
        done += amount
        if done * MAX_LINES // total > lines_before:
            print(f"{title}: {done} of {total} {unit}", *filter(None, [remark]), sep=", ", file=sys.stderr)

    return advance
