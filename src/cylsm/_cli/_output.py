"""Files of results: known to be writable before the work starts, and never left half-written."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cylsm._cli._errors import InputError

Write = Callable[[bytes], None]


@contextmanager
def created(path: str) -> Iterator[Write]:
    """Yield what writes the file's content; once the body has succeeded, `path` is made or replaced."""
    destination = os.path.realpath(path)
    if os.path.exists(destination) and not os.path.isfile(destination):
        raise InputError(f"{path} is not a regular file")
    partial = os.path.join(os.path.dirname(destination), f".cylsm-{secrets.token_hex(8)}.part")
    try:
        with _os_errors(path):
            if os.path.exists(destination) and not os.access(destination, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            open(partial, "xb").close()

        def write(content: bytes) -> None:
            with _os_errors(path), open(partial, "wb") as file:
                file.write(content)

        yield write
        with _os_errors(path):
            if os.path.exists(destination):
                shutil.copymode(destination, partial)
            os.replace(partial, destination)
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(partial)


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
