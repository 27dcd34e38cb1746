"""What was built, and what of it runs here."""

from importlib.metadata import version
from typing import Any, Literal, overload

from cylsm import _driver, _threads

__version__ = version("cylsm")


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print or return how cylsm was built and what it uses on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print the configuration or to return it.

    Returns
    -------
    dict or None
        For "dicts": ``version``; ``isa``, the instruction set in use; ``available_isas``, those that this machine
        runs; ``openmp``, whether cylsm was built with OpenMP; ``num_threads``, as `get_num_threads` returns it;
        ``single_thread_reason``, why calls can only use one thread, or None.

    Raises
    ------
    ValueError
        If `mode` is neither of the two.

    Examples
    --------
    >>> import cylsm
    >>> config = cylsm.show_config(mode="dicts")
    >>> config["isa"] in config["available_isas"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', not {mode!r}")
    config = {
        "version": __version__,
        "isa": _driver.isa(),
        "available_isas": _driver.available_isas(),
        **_threads.describe(),
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    return None
