import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import cylsm
from cylsm import _driver

CONFIG = cylsm.show_config(mode="dicts")
# Seconds in a plain run; `pytest --hypothesis-profile=thorough` for minutes, of the tests that ask for `thorough` too.
for profile, examples in (("plain", 120), ("thorough", 5000)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        print_blob=True,
        derandomize="CYLSM_TEST_SEED" in os.environ,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("plain")

SEED = int(os.environ.get("CYLSM_TEST_SEED") or np.random.SeedSequence().generate_state(1)[0])


def pytest_report_header():
    return f"cylsm: {', '.join(CONFIG['available_isas'])}; CYLSM_TEST_SEED={SEED}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """A test runs on all instruction sets one after the other: the oracle then answers once for all."""
    places = {}

    def place(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        test = item.nodeid.replace(params.get("isa", ""), "")
        return places.setdefault(test, len(places))

    items.sort(key=place)


@pytest.fixture(scope="module", params=CONFIG["available_isas"])
def isa(request):
    """Each instruction set in turn."""
    _driver._use_isa(request.param)
    yield request.param
    _driver._use_isa(CONFIG["isa"])


@pytest.fixture(scope="session")
def thorough(pytestconfig):
    """Whether the long forms of tests were asked for."""
    return pytestconfig.getoption("--hypothesis-profile") == "thorough"


@pytest.fixture
def seed():
    """A number that is new in each run. pytest shows what a failed test printed: the way to repeat it."""
    print(f"CYLSM_TEST_SEED={SEED}")
    return SEED


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def no_warnings():
    """No call ever emits a NumPy or a Python warning."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def default_threads():
    yield
    cylsm.set_num_threads(None)
