"""What help() shows. pytest does not look into compiled modules for examples, so this does."""

import doctest
import inspect
import re

import pytest

import cylsm

SIGNATURES = {
    "logsumexp": "(x, axis=-1, *, b=None, keepdims=False, return_sign=False, out=None)",
    "log_softmax": "(x, axis=-1, *, out=None)",
    "softmax": "(x, axis=-1, *, out=None)",
    "logsumexp_backward": "(grad_output, x, axis=-1, *, out=None)",
    "log_softmax_backward": "(grad_output, log_probs, axis=-1, *, out=None)",
    "softmax_backward": "(grad_output, probs, axis=-1, *, out=None)",
    "nll_loss": "(log_probs, target, axis=-1, *, weight=None, ignore_index=-100, reduction='mean')",
    "nll_loss_with_grad": "(log_probs, target, axis=-1, *, weight=None, ignore_index=-100, reduction='mean', "
    "grad_output=None, out=None)",
    "cross_entropy": "(logits, target, axis=-1, *, weight=None, ignore_index=-100, reduction='mean', "
    "label_smoothing=0.0)",
    "cross_entropy_with_grad": "(logits, target, axis=-1, *, weight=None, ignore_index=-100, "
    "reduction='mean', label_smoothing=0.0, grad_output=None, out=None)",
    "set_num_threads": "(n)",
    "get_num_threads": "()",
    "show_config": "(mode='stdout')",
}

each_function = pytest.mark.parametrize("name", SIGNATURES)


def section(docstring, title):
    """The lines below a numpydoc title, up to the next one."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-+\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return found and found[1]


def test_public_names():
    assert set(cylsm.__all__) - {"__version__"} == set(SIGNATURES)


@each_function
def test_signature(name):
    signature = inspect.signature(getattr(cylsm, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


@each_function
def test_sections(name):
    """Each parameter is explained, under its own name and no other."""
    docstring = inspect.getdoc(getattr(cylsm, name))
    summary = docstring.split("\n\n")[0]
    assert "\n" not in summary
    assert summary.endswith(".")
    assert section(docstring, "Examples")
    assert name == "set_num_threads" or section(docstring, "Returns")
    parameters = list(inspect.signature(getattr(cylsm, name)).parameters)
    explained = re.findall(r"^(\w[\w, ]*?) :", section(docstring, "Parameters") or "", re.MULTILINE)
    assert [each for line in explained for each in line.split(", ")] == parameters


@each_function
def test_examples(name, capsys):
    function = getattr(cylsm, name)
    tests = doctest.DocTestFinder(recurse=False).find(function, name, globs={}, module=False)
    examples = sum(len(test.examples) for test in tests)
    assert examples > 0
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out
