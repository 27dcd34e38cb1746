"""Log-sum-exp, log-softmax, softmax, their gradients, NLL and fused cross-entropy for NumPy arrays on the CPU."""

from cylsm import _interpreter  # noqa: F401

# isort: split
from cylsm._config import __version__, show_config
from cylsm._functions import (
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    softmax,
    softmax_backward,
)
from cylsm._losses import cross_entropy, cross_entropy_with_grad, nll_loss, nll_loss_with_grad
from cylsm._threads import get_num_threads, set_num_threads

__all__ = [
    "__version__",
    "cross_entropy",
    "cross_entropy_with_grad",
    "get_num_threads",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "logsumexp_backward",
    "nll_loss",
    "nll_loss_with_grad",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_backward",
]
