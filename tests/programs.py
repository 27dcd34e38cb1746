"""Programs that need an interpreter of their own."""

import os
import subprocess
import sys


def run(program, **environment):
    """What a new interpreter prints, word by word."""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()
