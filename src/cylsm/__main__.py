"""The process of ``python -m cylsm``: its standard streams, its signals, its exit status."""

import os
import signal
import sys
from types import FrameType

from cylsm._cli import main


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    # A stream that the caller closed (2>&-) is None, which tqdm can't write to.
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    # By default these end Python on the spot, and a half-written file would stay behind. Windows has no
    # SIGHUP, and nohup's ignoring it has to stand.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _terminate)

    sys.exit(main())
