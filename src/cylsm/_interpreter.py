"""Refuses subinterpreters, before a compiled module is loaded: those of cylsm and NumPy belong to one interpreter."""

from importlib import import_module

for _name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13, and before
    try:
        _interpreters = import_module(_name)
    except ImportError:
        continue
    if _interpreters.get_current() != _interpreters.get_main():
        raise ImportError("cylsm can't be imported in a subinterpreter: it needs the main interpreter of a process")
    break
