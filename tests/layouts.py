"""The same values in other places: each function returns an array equal to the one it is given."""

import numpy as np


def fortran(x):
    return x.copy("F")


def transposed(x):
    """In memory the axes are the other way round, and the classes not next to each other."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1) if x.ndim else x


def spaced(x):
    """Every third element along the last axis, every second along the first."""
    room = np.full((*(2 * n for n in x.shape[:-1]), 3 * x.shape[-1]), 77).astype(x.dtype) if x.ndim else x
    view = room[(*(slice(None, None, 2) for _ in x.shape[:-1]), slice(1, None, 3))] if x.ndim else room
    view[...] = x
    return view


def with_gaps(x):
    """Rows that are contiguous but further apart than they are long."""
    room = np.full((*x.shape[:-1], x.shape[-1] + 3), 77).astype(x.dtype) if x.ndim else x
    view = room[..., 2:-1] if x.ndim else room
    view[...] = x
    return view


def reversed_axes(x):
    backwards = (..., *(slice(None, None, -1),) * x.ndim)
    return x[backwards].copy()[backwards]


def backwards_and_spaced(x):
    return spaced(x[..., ::-1])[..., ::-1] if x.ndim else x


def swapped(x):
    return x.astype(x.dtype.newbyteorder("S"))


def swapped_and_reversed(x):
    return reversed_axes(swapped(x))


def unaligned(x):
    view = np.ndarray(x.shape, x.dtype, np.empty(x.nbytes + 1, np.uint8), offset=1)
    view[...] = x
    assert x.itemsize == 1 or not view.size or not view.flags.aligned
    return view


def odd_stride(x):
    """A field of a packed record: elements are aligned by chance only."""
    record = np.zeros(x.shape, [("before", np.uint8), ("value", x.dtype), ("after", np.uint16)])
    record["value"] = x
    return record["value"]


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = (
    fortran,
    transposed,
    spaced,
    with_gaps,
    reversed_axes,
    backwards_and_spaced,
    swapped,
    swapped_and_reversed,
    unaligned,
    odd_stride,
    read_only,
)
WRITABLE = tuple(layout for layout in LAYOUTS if layout not in (swapped, swapped_and_reversed, read_only))
