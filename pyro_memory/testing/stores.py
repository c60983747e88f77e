"""The contract of a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pyro_memory.gate import checked, told
from pyro_memory.testing.demands import copied, demand, isolated, pickled


@checked
def check_store(
    store: Any,
    *,
    write: Callable[[Any], Any] | None = None,
    read: Callable[[Any], Any] | None = None,
    tensors: bool = True,
) -> None:
    """Checks what a memory must keep to be an argument of model and guide, to be swapped, saved and moved.

    What a store holds is its public attributes and properties that are tensors or numbers, in it and in the stores
    within it.

    - It is a value: writing gives a new store and leaves the old one as it was, and so does reading.
    - Deepcopy, pickle, and ``to_tensors``, saved by safetensors and rebuilt by the class method ``from_tensors``, hold
      the same and read the same.
    - ``.to(dtype)`` gives a new store whose floating-point tensors, and no others, have that dtype; ``.to("cpu")``
      changes nothing, and ``.to("cuda")``, where there is one, moves every tensor.
    - Its ``prior()``, if it has one, is a distribution over its slots; a slot that ``filled`` (if it has that) calls
      empty has probability zero.
    - ``store[a]``, if it has that, reads addresses of any shape: one a cell of the plates, with particles to their
      left, and enumerated.

    Args:
        store: an instance, best with some slots filled and some not.
        write: gives a store that was written to, ``lambda store: store.write(items)``.
        read: reads something, ``lambda store: store[torch.tensor([0, 1])]``; tensors, or a nest of them.
        tensors: False for a store that lives elsewhere, in files or divided over processes: it need not save as
            tensors nor cast.

    Raises:
        AssertionError: if something does not hold.

    Example::

        check_store(MyMemory(torch.rand(4, 2)), write=lambda store: store.write(torch.rand(1, 2)))
    """
    if read is None:
        read = _read_one if hasattr(store, "__getitem__") and hasattr(store, "prior") else lambda store: ()
    if not hasattr(store, "__dict__"):
        raise TypeError(f"`store` must be an object with tensors in its attributes; got {told(store)}")
    with isolated():
        demand(
            any(isinstance(t, Tensor) for t in _held(store).values()),
            f"a {type(store).__name__} must hold tensors in public attributes; found none to compare",
        )
        _check_value(store, write, read)
        _check_copies(store, read, tensors)
        _check_moves(store, tensors)
        if hasattr(store, "prior"):
            _check_prior(store)
            if hasattr(store, "__getitem__"):
                _check_addresses(store)


def _read_one(store: Any) -> Any:
    return store[store.prior().probs.argmax(-1)]


def _held(store: Any, prefix: str = "") -> dict[str, Any]:
    """The tensors and numbers of a store by name, and None for what could be one and is not there."""
    found: dict[str, Any] = {}
    names = {name for name in dir(type(store)) if isinstance(getattr(type(store), name), property)}
    for name in sorted(n for n in names | set(vars(store)) if not n.startswith("_")):
        value = getattr(store, name)
        if isinstance(value, (Tensor, int, float, str)) or value is None:
            found[prefix + name] = value
        elif hasattr(value, "to_tensors"):
            found |= _held(value, f"{prefix}{name}.")
    return found


def _contents(store: Any) -> dict[str, Any]:
    return {n: t.detach().clone() if isinstance(t, Tensor) else t for n, t in _held(store).items()}


def _same(actual: dict[str, Any], expected: dict[str, Any], message: str) -> None:
    for name, old in expected.items():
        demand(_equal(actual.get(name), old), f"{message}; `{name}` differs")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def _leaves(read: Any) -> list[Tensor]:
    return [t.detach().clone() for t in torch.utils._pytree.tree_leaves(read) if isinstance(t, Tensor)]


def _check_value(store: Any, write: Callable[[Any], Any] | None, read: Callable[[Any], Any]) -> None:
    before = _contents(store)
    first, second = _leaves(read(store)), _leaves(read(store))
    _same(_contents(store), before, "reading must change nothing")
    demand(
        all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "reading twice must give the same. Keep "
        "nothing between reads"
    )  # fmt: skip
    if write is None:
        return
    written = write(store)
    demand(
        type(written) is type(store) and written is not store,
        f"writing must return a new {type(store).__name__}; got "
        f"{'the same one' if written is store else type(written).__name__}. A store is a value: return another",
    )
    _same(_contents(store), before, "writing must leave the old store as it was: write to a clone, not in place")
    after = _contents(written)
    demand(
        not all(_equal(after.get(name), old) for name, old in before.items()),
        "the written store must differ from the old one; it holds the same",
    )


def _rebuilt(store: Any) -> Any:
    for method in ("to_tensors", "from_tensors"):
        demand(hasattr(store, method), f"a {type(store).__name__} must have `{method}`, to be saved in a checkpoint")
    tensors = store.to_tensors()
    wrong = [name for name, t in tensors.items() if not isinstance(t, Tensor)]
    demand(not wrong, f"`to_tensors` must give tensors only; {', '.join(wrong)} is none. Wrap numbers by torch.tensor")
    return type(store).from_tensors(load(save({n: t.detach().contiguous().clone() for n, t in tensors.items()})))


def _check_copies(store: Any, read: Callable[[Any], Any], tensors: bool) -> None:
    before, seen = _contents(store), _leaves(read(store))
    copies = {
        "deepcopied": lambda: copied(store, "the store"),
        "pickled": lambda: pickled(store, "the store"),
        "saved by to_tensors and rebuilt by from_tensors": lambda: _rebuilt(store),
    }
    for how, make in list(copies.items())[: 3 if tensors else 2]:
        again = make()
        demand(type(again) is type(store), f"a store {how} must be one again; got a {type(again).__name__}")
        _same(_contents(again), before, f"a store {how} must hold the same")
        same = all(torch.equal(a, b) for a, b in zip(_leaves(read(again)), seen, strict=True))
        demand(same, f"a store {how} must read the same. Save all that reading depends on")


def _check_moves(store: Any, tensors: bool) -> None:
    before = _contents(store)
    _same(_contents(store.to("cpu")), _contents(store.to("cpu").to("cpu")), '`.to("cpu")` twice must be as once')
    if tensors:
        moved = _held(store.to(torch.float64))
        for name, old in before.items():
            new = moved.get(name)
            if isinstance(old, Tensor) and isinstance(new, Tensor):
                demand(
                    new.dtype == (torch.float64 if old.is_floating_point() else old.dtype),
                    f"`.to(torch.float64)` must cast what is floating point and leave the rest; `{name}` is "
                    f"{new.dtype}, was {old.dtype}",
                )
                new = new.to(old.dtype)
            demand(_equal(new, old), f"`.to` must keep values; `{name}` differs")
    _same(_contents(store), before, "`.to` must give a new store and leave this one as it was")
    if tensors and torch.cuda.is_available():
        left = [n for n, t in _held(store.to("cuda")).items() if isinstance(t, Tensor) and t.dim() and not t.is_cuda]
        demand(not left, f'`.to("cuda")` must move every tensor; {", ".join(left)} stayed')


def _check_prior(store: Any) -> None:
    probs = store.prior().probs
    demand(
        bool(probs.isfinite().all()) and bool(((probs.sum(-1) - 1).abs() < 1e-4).all()),
        "`prior()` must be a distribution over slots whose probabilities are finite and sum to 1",
    )
    filled = getattr(store, "filled", None)
    if isinstance(filled, Tensor):
        empty = ~filled.reshape(probs.shape)
        demand(
            not probs[empty].any(), "`prior()` must give a slot that is not filled probability zero; some has more. "
            "Set its logit to -inf"
        )  # fmt: skip
        demand(bool((probs[~empty] > 0).all()), "`prior()` must give every filled slot a positive probability")


def _check_addresses(store: Any) -> None:
    prior = store.prior()
    plates = tuple(prior.batch_shape)
    plain = next(_shapes(prior, plates))
    one = store[plain]
    demand(
        one.shape[: len(plates)] == plates,
        f"`store[a]` must keep the plates' dimensions {list(plates)} in front; got {list(one.shape)}",
    )
    for a in _shapes(prior, plates):
        read = store[a]
        lead = torch.broadcast_shapes(a.shape, plates)
        rows = a.expand(lead).reshape(-1, *plates)
        expected = torch.stack([store[row] for row in rows]).reshape(lead + one.shape[len(plates) :])
        demand(
            read.shape == expected.shape and torch.equal(read, expected),
            f"`store[a]` for addresses of shape {list(a.shape)} (particles and enumerated values stand left of the "
            f"plates {list(plates)}) must read each address by itself, {list(expected.shape)}; got {list(read.shape)}"
            f"{'' if read.shape != expected.shape else ' with other values'}. See SlotMemory.gather",
        )


def _shapes(prior: Any, plates: tuple[int, ...]) -> Iterator[Tensor]:
    yield prior.sample()
    yield prior.sample((4,))
    yield prior.enumerate_support(expand=False)
    yield prior.enumerate_support(expand=True)
    yield prior.enumerate_support(expand=False).unsqueeze(1).expand(-1, 3, *[1] * len(plates))
