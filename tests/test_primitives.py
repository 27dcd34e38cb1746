"""exp and log on their own: the errors stated in _exp.pxi, the special values, and the constants they are made of.

A plain run takes some of the numbers, `--hypothesis-profile=thorough` every float32 there is.
"""

import itertools
import math
import platform
import re
from pathlib import Path

import accuracy
import numpy as np
import pytest
import reference

from cylsm import _driver

EXP = Path(__file__).parent.parent / "src" / "cylsm" / "_exp.pxi"
WIDER = {np.float32: np.float64, np.float64: np.longdouble}
BITS = {np.float32: np.uint32, np.float64: np.uint64}
LN2 = math.log(2)
CHUNK = 1 << 24

# The largest errors there are, in ulp of float32 and float64: without fused multiply-add, and with it. There exp_from
# and exp_near take ln 2 in one part for float32.
MOST = {
    "exp_from": ((0.99, 1.1), (4.5, 1.1)),
    "exp_near": ((1.2, 1.1), (4.5, 1.1)),
    "exp_scaled": ((0.99, 1.1), (1.02, 1.1)),
    "log_of_sum": ((0.87, 0.8), (0.73, 0.8)),
}

# What the decimals and the bits in the source stand for.
MEANT = {
    "0.6931471805599453": LN2,
    "1.4426950408889634": 1 / LN2,
    "9.313225746154785e-10": 2.0**-30,
    "8.673617379884035e-19": 2.0**-60,
    "12582912.0": 1.5 * 2**23,
    "6755399441055744.0": 1.5 * 2**52,
    "0x4afb0d": int(np.float32(1).view(np.uint32) - np.float32(math.sqrt(0.5)).view(np.uint32)),
    "0x95f619980c433": int(np.float64(1).view(np.uint64) - np.float64(math.sqrt(0.5)).view(np.uint64)),
    "0x3f3504f3": int(np.float32(math.sqrt(0.5)).view(np.uint32)),
    "0x3fe6a09e667f3bcd": int(np.float64(math.sqrt(0.5)).view(np.uint64)),
    "0x4b400000": int(np.float32(1.5 * 2**23).view(np.uint32)),
    "0x4338000000000000": int(np.float64(1.5 * 2**52).view(np.uint64)),
}
LN2_PARTS = {
    np.float32: ("0.693145751953125", "1.4286068203094173e-06"),
    np.float64: ("6.93147180369123816490e-01", "1.90821492927058770002e-10"),
}
MOST_POWER = {np.float32: 256, np.float64: 2048}

each_dtype = pytest.mark.parametrize("dtype", accuracy.FLOATS)
each_exp = pytest.mark.parametrize("name", ["exp_from", "exp_scaled"])


def primitive(name, x, y=None):
    out = np.empty_like(x)
    addresses = [array.ctypes.data for array in (x, x if y is None else y, out)]
    _driver._primitive(name, x.dtype == np.float64, x.size, *addresses)
    return out


def largest_error(result, exact):
    """In ulp; below the smallest normal number those are all the same."""
    info = np.finfo(result.dtype)
    exponent = np.maximum(np.frexp(exact)[1] - 1, info.minexp) - info.nmant
    return float(np.ldexp(abs(result - exact), -exponent).max())


@reference.silent
def error_of_exp(name, x, factor=1):
    factors = np.full_like(x, factor)
    return largest_error(primitive(name, x, factors), np.exp(x.astype(WIDER[x.dtype.type])) * factors)


@reference.silent
def error_of_log(a, b):
    sum_less_1 = a.astype(WIDER[a.dtype.type]) - 1 + b
    return largest_error(primitive("log_of_sum", a, b), np.log1p(sum_less_1))


def assert_at_most(error, name, isa, dtype):
    fused = isa != "baseline" or platform.machine() in ("arm64", "aarch64")
    assert error <= MOST[name][fused][accuracy.FLOATS.index(dtype)]


def numbers_between(low, high, dtype, step):
    """Every `step`-th number of that dtype from low to high, both positive, in pieces."""
    first, last = (int(dtype(end).view(BITS[dtype])) for end in (low, high))
    for start in range(first, last, step * CHUNK):
        yield np.arange(start, min(start + step * CHUNK, last), step, BITS[dtype]).view(dtype)


def neighbours(x, dtype, reach=8):
    """Numbers and those around them."""
    x = np.asarray(x, dtype)
    return np.concatenate(
        [(x.view(BITS[dtype]) + np.array(k).astype(BITS[dtype])).view(dtype) for k in range(-reach, reach)]
    )


# exp


def sizes_of_exponents(dtype, highest, rng, thorough):
    """Pieces of numbers from 0 to `highest`, those around each change of the power of two among them."""
    step = (1 if thorough else 4001) if dtype == np.float32 else (1 << 40 if thorough else 1 << 45)
    halves = (np.arange(highest / LN2 - 1) + 0.5) * LN2
    some = [neighbours(halves, dtype), rng.uniform(0, highest, 300_000).astype(dtype)]
    return itertools.chain(some, numbers_between(dtype(1e-30), dtype(highest), dtype, step))


@each_dtype
def test_exp_from(dtype, isa, rng, thorough):
    for x in sizes_of_exponents(dtype, 104.0 if dtype == np.float32 else 745.2, rng, thorough):
        assert_at_most(error_of_exp("exp_from", -x), "exp_from", isa, dtype)


@each_dtype
def test_exp_near(dtype, isa, rng, thorough):
    """What the rounding of the difference loses is not lost."""
    highest = 104.0 if dtype == np.float32 else 745.2
    for gaps in sizes_of_exponents(dtype, highest, rng, thorough):
        for most in (0, 3, 300):
            top = rng.uniform(-most, most, gaps.size).astype(dtype)
            x = np.minimum(top - gaps, top)
            exact = np.exp(x.astype(WIDER[dtype]) - top)
            near = exact >= np.finfo(dtype).smallest_subnormal
            assert_at_most(largest_error(primitive("exp_near", x, top)[near], exact[near]), "exp_near", isa, dtype)


@each_dtype
def test_special_values_of_exp_near(dtype, isa):
    most = np.finfo(dtype).max
    x = np.array([3, most, -most, -most, -np.inf, -np.inf, 7, np.inf, np.nan, 1], dtype)
    top = np.array([3, most, -most, most, 5, -most, np.inf, np.inf, 1, np.nan], dtype)
    expected = np.array([1, 1, 1, 0, 0, 0, 0, np.nan, np.nan, np.nan], dtype)
    accuracy.assert_same_bits(primitive("exp_near", x, top), expected)


@pytest.mark.parametrize("power", [0, 1, -40, 40, -120, 120])
@each_dtype
def test_exp_scaled(power, dtype, isa, rng, thorough):
    """From twice the smallest normal number to a third of the largest one."""
    info = np.finfo(dtype)
    factor = dtype(math.ldexp(1, power if dtype == np.float32 else 8 * power))
    least = math.log(2 * info.smallest_normal) - math.log(factor)
    most = min(math.log(info.max / 3) - math.log(factor), math.log(info.max))
    for x in sizes_of_exponents(dtype, max(-least, most), rng, thorough):
        for exponents in (x[x <= most], -x[-x >= least]):
            if exponents.size:
                assert_at_most(error_of_exp("exp_scaled", exponents, factor), "exp_scaled", isa, dtype)


@each_exp
@each_dtype
def test_special_values_of_exp(name, dtype, isa):
    info = np.finfo(dtype)
    x = np.array([0, -0.0, -info.smallest_subnormal, -800, info.min, -np.inf, np.nan], dtype)
    accuracy.assert_same_bits(primitive(name, x, np.ones_like(x)), np.array([1, 1, 1, 0, 0, 0, np.nan], dtype))


@each_dtype
def test_special_values_of_exp_scaled(dtype, isa):
    info = np.finfo(dtype)
    x = np.array([info.smallest_subnormal, 800, info.max, np.inf, np.inf, 0, 0, 3, 3, -np.inf], dtype)
    factors = np.array([1, 1, 1, 1, -info.smallest_normal, np.inf, np.nan, 0, -0.0, info.max], dtype)
    expected = np.array([1, np.inf, np.inf, np.inf, -np.inf, np.inf, np.nan, 0, -0.0, 0], dtype)
    accuracy.assert_same_bits(primitive("exp_scaled", x, factors), expected)


@each_exp
@each_dtype
def test_exp_of_what_is_not_above_0_is_at_most_1(name, dtype, isa):
    x = -neighbours([1e-30, 1e-9, 1e-4, 0.1, LN2 / 2, LN2], dtype)
    assert (primitive(name, x, np.ones_like(x)) <= 1).all()


# log


@each_dtype
def test_log_of_sum(dtype, isa, rng, thorough):
    counts = [1, 2, 3, 4, 5, 7, 11, 46, 1000, 999_983]
    smallest = 1e-45 if dtype == np.float32 else 1e-300
    step = (1 if thorough else 8009) if dtype == np.float32 else (1 << 40 if thorough else 1 << 45)
    some = []
    for count in counts:
        some.append((count, reference.rounded(np.geomspace(smallest, 1e6, 20_000), dtype)))
        # where the sum's power of two changes, and what is left of it is smallest
        borders = np.ldexp(np.array([[math.sqrt(2)], [1]]), np.arange(1, 21)).ravel() - count
        borders = borders[borders > 0]
        some.append((count, neighbours(borders, dtype, 40)))
        some.append((count, (np.repeat(borders, 500) * rng.uniform(0.99, 1.01, 500 * borders.size)).astype(dtype)))
    every = ((1, b) for b in numbers_between(smallest, 1e6, dtype, step))
    for count, b in itertools.chain(some, every):
        assert_at_most(error_of_log(np.full_like(b, count), b), "log_of_sum", isa, dtype)


@each_dtype
def test_special_values_of_log(dtype, isa):
    tiny = np.finfo(dtype).smallest_subnormal
    a, b = np.array([[1, 0], [1, tiny], [1, np.nan], [np.nan, 0]], dtype).T.copy()
    accuracy.assert_same_bits(primitive("log_of_sum", a, b), np.array([0, tiny, np.nan, np.nan], dtype))


# Constants


@pytest.fixture(scope="module")
def source():
    if not EXP.exists():
        pytest.skip("needs the source tree")
    return EXP.read_text()


@pytest.mark.parametrize(("literal", "meant"), MEANT.items())
def test_constants_are_the_numbers_meant(literal, meant, source):
    assert literal in source
    assert (int(literal, 16) if "0x" in literal else float(literal)) == meant


@each_dtype
def test_parts_of_ln2(dtype, source):
    """Any power of two times the first part is exact, so that x - n ln 2 is rounded once for each part, at most."""
    literals, powers = LN2_PARTS[dtype], np.arange(1, MOST_POWER[dtype])
    assert all(literal in source for literal in literals)
    high, low = (dtype(literal) for literal in literals)
    wide = WIDER[dtype]
    np.testing.assert_array_equal(powers.astype(dtype) * high, powers.astype(wide) * wide(high))
    assert abs(wide(high) + wide(low) - np.log(wide(2))) <= np.spacing(low) / 2


def test_floats_are_written_as_the_floats_they_are(source):
    """So that the compiler rounds none of them, but for ln 2 and its second part."""
    written = {float(number) for number in re.findall(r"<float> (\d[\d.]*(?:e[-+]?\d+)?)", source)}
    assert {number for number in written if float(np.float32(number)) != number} == {
        LN2,
        float(LN2_PARTS[np.float32][1]),
    }
