"""What users give as data, looked at once: numbers in arrays, lists or tensors of any type become tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_memory.gate import told

Numbers: TypeAlias = Any  # a tensor, an array, a list, a pandas frame or column, anything numpy takes for an array
_WIDER = {torch.uint16: torch.long, torch.uint32: torch.long, torch.uint64: torch.double}


def tensor_of(name: str, given: Numbers) -> Tensor:
    """Gives the numbers of an array, a list, a tensor or a list of tensors as a tensor in the memory of the CPU.

    Raises:
        ValueError: if they are no numbers, or do not fill a rectangle.
    """
    if not isinstance(given, Tensor):
        ragged = f"`{name}` must be numbers in rows of one length; got several lengths"
        if isinstance(given, Sequence) and len(given) and all(isinstance(part, Tensor) for part in given):
            if len({part.shape for part in given}) > 1:
                raise ValueError(ragged)
            return tensor_of(name, torch.stack(list(given)))
        try:
            array = _array(given)
        except (ValueError, TypeError) as error:
            raise ValueError(ragged) from error
        except AttributeError as error:  # of an object's own items: images, where their indices were wanted
            raise ValueError(f"`{name}` must be numbers, as a tensor, an array or a list; got {told(given)}") from error
        if array.dtype.kind not in "biuf":
            raise ValueError(f"`{name}` must be numbers; got {_told(array)}{_column(given)}")
        wide = {"u": np.float64 if array.itemsize == 8 else np.int64}.get(array.dtype.kind, array.dtype)
        kind = np.dtype(wide if array.itemsize > 1 else array.dtype).newbyteorder("=")
        kind = np.dtype(np.float64) if kind.kind == "f" and kind.itemsize > 8 else kind
        array = np.ascontiguousarray(array, kind)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if given.is_meta or given.is_complex():
        raise ValueError(f"`{name}` must be real numbers; got {given.dtype} on the device {given.device}")
    given = given.detach().cpu()
    if given.is_floating_point() and given.element_size() == 1:
        return given.float()  # eight bits do no arithmetic
    return given.to(_WIDER.get(given.dtype, given.dtype))


def classes_of(name: str, given: Numbers, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Gives the numbers of classes, which may be given by name, and the names: those given, or those found.

    Raises:
        ValueError: if some are names and some are not, or one is not among the names given.
    """
    items = _items(given)
    if not any(isinstance(item, str) for item in items):
        return tensor_of(name, given), names
    odd = next((i for i, item in enumerate(items) if not isinstance(item, str)), None)
    if odd is not None:
        raise ValueError(f"`{name}` must be names or numbers, not both; item {odd} is {items[odd]!r} among names")
    ordered = getattr(getattr(given, "cat", given), "categories", None)  # of pandas
    present = set(items)
    known = names or tuple(item for item in (sorted(present) if ordered is None else ordered) if item in present)
    numbers = {item: i for i, item in enumerate(known)}
    strange = next((i for i, item in enumerate(items) if item not in numbers), None)
    if strange is not None:
        raise ValueError(
            f"`{name}` must be among `class_names`; item {strange} is {items[strange]!r}. Name every class, or give no "
            "`class_names`"
        )
    return torch.tensor([numbers[item] for item in items], device="cpu"), known


def integers(
    name: str, given: Numbers, *, low: int, high: int, item: str, dtype: torch.dtype = torch.long, remedy: str = ""
) -> Tensor:
    """Gives whole numbers from ``low`` to ``high``, whatever type they are kept in.

    Raises:
        ValueError: naming the first ``item`` that holds another number, and the remedy.
    """
    numbers = tensor_of(name, given)
    if not numbers.is_floating_point() and numbers.dtype != torch.uint8:
        numbers = numbers.to(torch.uint8 if numbers.dtype == torch.bool else torch.long)
    if dtype == torch.long and not numbers.is_floating_point():
        numbers = numbers.long()  # a bound may not fit into fewer bits
    bad = (numbers < low) | (numbers > high)
    if numbers.is_floating_point():
        bad |= numbers != numbers.round()  # true of NaN
    if bool(bad.any()):
        at = first(bad)
        raise ValueError(
            f"`{name}` must be whole numbers from {low} to {high}; {item} {at[0] if at else 0} has "
            f"{numbers[at].item():.6g}. {remedy}".rstrip()
        )
    return numbers.to(dtype)


def finite(name: str, numbers: Tensor, *, items: Sequence[str]) -> Tensor:
    """Gives floating-point numbers back if they are finite.

    Raises:
        ValueError: naming the place of the first that is not; ``items`` are the names of its coordinates.
    """
    bad = ~numbers.isfinite()
    if bool(bad.any()):
        at = first(bad)
        place = ", ".join(f"{what} {i}" for what, i in zip(items, at, strict=False))
        raise ValueError(f"`{name}` must be finite; got {numbers[at].item()} at {place}. Fill the gap or leave it out")
    return numbers


def first(bad: Tensor) -> tuple[int, ...]:
    """Gives the coordinates of the first true entry."""
    return tuple(int(i) for i in np.unravel_index(int(bad.flatten().int().argmax()), bad.shape))


def names_of(name: str, given: Iterable[Any], count: int | None, of: str) -> tuple[str, ...]:
    """Gives a name for each of ``count`` things (None: as many as there are), their numbers where none are given.

    Raises:
        ValueError: if their number is another.
    """
    if not isinstance(given, Iterable):
        raise TypeError(f"`{name}` must be names, one {of}; got {told(given)}")
    if isinstance(given, (str, bytes)):
        raise ValueError(f"`{name}` must be names, one {of}; got the string {given!r}: write ({given!r},)")
    names = tuple(map(str, given)) or tuple(map(str, range(count or 0)))
    if count is not None and len(names) != count:
        raise ValueError(f"`{name}` must be {count} names, one {of}; got {len(names)}")
    return names


def _items(given: Numbers) -> list[Any]:
    """The items of a row that may hold names; none where it holds numbers."""
    if isinstance(given, Tensor) or (isinstance(given, Sequence) and any(isinstance(item, Tensor) for item in given)):
        return []
    try:
        array = np.asarray(given)
    except (ValueError, TypeError, AttributeError):
        return []
    return array.tolist() if array.ndim == 1 and array.dtype.kind in "OTU" else []


def _array(given: Numbers) -> np.ndarray:
    """An array of what is no tensor; pandas' own numbers, which may miss, as plain ones."""
    array = np.asarray(given)
    if array.dtype.kind == "O" and hasattr(given, "to_numpy"):
        with suppress(ValueError, TypeError):  # what is no number is told from the array
            return given.to_numpy(np.float64, na_value=np.nan)
    return array


def _column(given: Numbers) -> str:
    """Which column of a frame holds no numbers."""
    kinds = getattr(given, "dtypes", None)
    odd = [str(column) for column, kind in getattr(kinds, "items", dict)() if getattr(kind, "kind", "O") not in "biuf"]
    return f" in column {odd[0]!r}. Leave it out: frame.drop(columns={odd[0]!r})" if odd else ""


def _told(array: np.ndarray) -> str:
    first_item = array.flat[0] if array.size else "nothing"
    return f"{first_item!r} of type {type(first_item).__name__}"
