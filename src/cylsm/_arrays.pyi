# What arguments may be, for the other stubs. At run time the module's names are Cython's alone.

from collections.abc import Iterator
from typing import Any, Protocol, SupportsIndex, TypeAlias, TypeVar, type_check_only

import numpy as np

# longdouble, complex numbers and objects are not accepted. Nor are masked arrays, but types can't say so.
_Float: TypeAlias = np.float16 | np.float32 | np.float64
_Whole: TypeAlias = np.integer[Any] | np.bool
_Single: TypeAlias = np.float16 | np.float32  # summed in float32
_Double: TypeAlias = np.float64 | _Whole  # summed in float64

_Type_co = TypeVar("_Type_co", covariant=True, bound=np.generic)
_Element_co = TypeVar("_Element_co", covariant=True)

@type_check_only
class _Array(Protocol[_Type_co]):
    """What is an array or becomes one; no scalar, which has no length."""

    def __len__(self) -> int: ...
    def __array__(self) -> np.ndarray[Any, np.dtype[_Type_co]]: ...

@type_check_only
class _Sequence(Protocol[_Element_co]):
    """A list or the like; no str, which can't be asked for any object, and no array, which has no reverse."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> _Element_co: ...
    def __contains__(self, item: object, /) -> bool: ...
    def __reversed__(self) -> Iterator[Any]: ...

# Classes rather than aliases, so that an error message shows their names.
@type_check_only
class _RealArray(_Array[_Float | _Whole], Protocol): ...

@type_check_only
class _RealSequence(_Sequence[float | _Float | _Whole | _RealArray | _RealSequence], Protocol): ...

@type_check_only
class _LabelArray(_Array[np.integer[Any]], Protocol): ...

@type_check_only
class _LabelSequence(_Sequence[int | np.integer[Any] | _LabelArray | _LabelSequence], Protocol): ...

@type_check_only
class _FloatArray(_Array[_Float], Protocol): ...

@type_check_only
class _FloatSequence(_Sequence[float | _Float | _FloatArray | _FloatSequence], Protocol): ...

_Rows: TypeAlias = _RealArray | _RealSequence
_Reals: TypeAlias = float | _Float | _Whole | _Rows

_Label: TypeAlias = int | np.integer[Any]
_Labels: TypeAlias = _LabelArray | _LabelSequence
_Probabilities: TypeAlias = _FloatArray | _FloatSequence

_Axis: TypeAlias = SupportsIndex
_Axes: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | None
