"""Files in NumPy's .npy format, checked before they are mapped and never left half-written.

A. A memory map ends the process (SIGBUS) where the file ends early or the disk is full. So a file that is cut
   short is refused before it is mapped, and the space of a new one is reserved.
B. `NpyFile.map` is called for every block: pages count as the process's memory until their map is closed, and
   with a single map a large array would look like a leak.
C. A new file takes its name only when it is complete; until then it is a hidden file in the same folder.
"""

import errno
import math
import os
import secrets
import shutil
import tokenize
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from cylsm._cli._errors import InputError


@dataclass(frozen=True)
class NpyFile:
    """The array of an open .npy file."""

    path: str
    file: BinaryIO
    mode: Literal["r", "r+"]
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int

    def map(self) -> NDArray[Any]:
        """Map the array anew."""
        order: Literal["F", "C"] = "F" if self.fortran_order else "C"
        with _os_errors(f"cannot map {self.path}"):
            return np.memmap(self.file, self.dtype, self.mode, self.offset, self.shape, order)


@contextmanager
def opened(path: str) -> Iterator[NpyFile]:
    """Open the array stored at `path`."""
    _refuse_special(path, path)
    with ExitStack() as stack:
        with _os_errors(f"cannot read {path}"):
            file = stack.enter_context(open(path, "rb"))
        yield _read_header(path, file)


@contextmanager
def created(path: str, shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype[Any]) -> Iterator[NpyFile]:
    """Open a new array, to be filled by the body; once that has succeeded, `path` is made or replaced."""
    destination = os.path.realpath(path)
    _refuse_special(destination, path)
    partial = os.path.join(os.path.dirname(destination), f".cylsm-{secrets.token_hex(8)}.part")
    try:
        with ExitStack() as stack:
            with _os_errors(f"cannot write {path}"):
                if os.path.exists(destination) and not os.access(destination, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                file = stack.enter_context(open(partial, "x+b"))
                offset = _write_header(file, shape, fortran_order, dtype)
            yield NpyFile(path, file, "r+", shape, fortran_order, dtype, offset)
            with _os_errors(f"cannot write {path}"):
                # Errors of the disk show up here at the latest, while the old file is still in place.
                os.fsync(file.fileno())
        with _os_errors(f"cannot write {path}"):
            if os.path.exists(destination):
                shutil.copymode(destination, partial)
            os.replace(partial, destination)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(partial)


@contextmanager
def _os_errors(failure: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{failure}: {error.strerror}") from error


def _refuse_special(path: str, name: str) -> None:
    # A pipe can't be mapped and opening one may wait forever; a device must not be replaced by a file.
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{name} is not a regular file")


def _read_header(path: str, file: BinaryIO) -> NpyFile:
    if file.read(np.lib.format.MAGIC_LEN)[:6] != np.lib.format.MAGIC_PREFIX:
        raise InputError(f"{path} is not a .npy file")
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        else:  # version 3 differs in the names of fields alone
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
        if any(length < 0 for length in shape):
            raise ValueError("negative length")
    # NumPy reads the header as Python source, with Python's own errors where it is none.
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"{path} has a damaged or incomplete .npy header") from error
    if dtype.hasobject:
        raise InputError(f"{path} holds pickled Python objects, not numbers")
    offset = file.tell()
    expected = offset + math.prod(shape) * dtype.itemsize
    size = os.fstat(file.fileno()).st_size
    if size < expected:
        raise InputError(f"{path} is cut short: its header announces {expected} bytes, it has {size}")
    return NpyFile(path, file, "r", shape, fortran_order, dtype, offset)


def _write_header(file: BinaryIO, shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype[Any]) -> int:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    offset = file.tell()
    _reserve(file, offset + math.prod(shape) * dtype.itemsize)
    return offset


def _reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            # Not every file system can, and not every C library writes zeros instead.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.ftruncate(file.fileno(), size)
