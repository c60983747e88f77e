"""States of sequence mixers: values that can be cut from the graph, moved, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_type_hints

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_map

from pyro_memory.gate import check_least, check_places, checked
from pyro_memory.kernels import may_look

Lengths = Int[Tensor, " batch"] | None
Kind = TypeVar("Kind", bound="State")  # not Self: a checker of calls sees dataclasses method by method


@dataclass(frozen=True, repr=False)
class State:
    """What a mixer carries from one call to the next, one row a sequence of the batch.

    A state is a value: a call returns a new one, and leaves what it was given as it was. ``detach()`` between calls
    ends the graph (truncated backpropagation); ``select`` and ``repeat`` fork sequences, ``reset`` starts some of them
    afresh. For learning that goes on across restarts, save ``to_tensors()`` with safetensors and rebuild with
    ``from_tensors``. One made under autocast or ``torch.inference_mode`` goes on outside of it, and vice versa.
    """

    def __init_subclass__(cls) -> None:
        """Makes a tree of it, of which torch's transforms and exports see the tensors."""
        super().__init_subclass__()
        register_pytree_node(
            cls,
            lambda state: ([getattr(state, field.name) for field in fields(state)], [f.name for f in fields(state)]),
            lambda values, names: cls(**dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __repr__(self) -> str:
        tensors = self.tensors()
        held = f"{len(tensors[0])} sequences, {len(tensors)} tensors, {sum(t.numel() for t in tensors):,} numbers"
        return f"{type(self).__name__}({held})"

    def map(self: Kind, f: Callable[[Tensor], Tensor]) -> Kind:
        """Applies f to every tensor."""
        return tree_map(f, self)

    def detach(self: Kind) -> Kind:
        """Cuts it from the graph."""
        return self.map(Tensor.detach)

    def to(self: Kind, *args: Any, **kwargs: Any) -> Kind:
        """Moves it to a device, or casts what is floating point."""

        def moved(t: Tensor) -> Tensor:
            floating = t if t.is_floating_point() else t.new_empty(0, dtype=torch.float32)
            return floating.to(*args, **kwargs) if floating is t else t.to(floating.to(*args, **kwargs).device)

        return self.map(moved)

    def where(self: Kind, mask: Tensor, other: Kind) -> Kind:
        """Keeps the sequences where ``mask [batch]`` is True and takes the others from another state."""
        self._check_which("mask", mask)
        return tree_map(lambda t, u: torch.where(mask.view(-1, *[1] * (t.dim() - 1)).to(t.device), t, u), self, other)

    def select(self: Kind, which: Tensor) -> Kind:
        """Takes the sequences ``which``, by number or by a mask ``[batch]``, in that order; one may come twice."""
        self._check_which("which", which, numbers=True)
        return self.map(lambda t: t[which.to(t.device)])

    def repeat(self: Kind, times: int) -> Kind:
        """Takes each sequence so many times, side by side: for beams, or several continuations."""
        check_least(1, times=times)
        return self.map(lambda t: t.repeat_interleave(times, 0))

    def reset(self: Kind, which: Tensor, start: Kind) -> Kind:
        """Starts the sequences of the mask ``which [batch]`` again: from ``start``, ``mixer.initial_state(1)``."""
        self._check_which("which", which)
        if start.shapes() != self.shapes() or len(start.tensors()[0]) != 1:
            raise ValueError(f"`start` must be a state of one sequence, mixer.initial_state(1); got {start}")
        return start.map(lambda t: t.expand(len(which), *t.shape[1:])).where(which, self)

    def allclose(self, other: State, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
        """Whether it is a state of the same kind with the same numbers, to a tolerance."""
        mine, theirs = dict(self.named_tensors()), dict(other.named_tensors())
        return {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()} and all(
            torch.allclose(t.double(), theirs[name].double(), rtol, atol) for name, t in mine.items()
        )

    def tensors(self) -> list[Tensor]:
        """Its tensors, in the order of their names."""
        found: list[Tensor] = []
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            found += value.tensors() if isinstance(value, State) else value if isinstance(value, tuple) else (value,)
        return found

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Goes through its tensors: ``"fast.weights.0"`` and so on."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, State):
                yield from ((f"{field.name}.{name}", tensor) for name, tensor in value.named_tensors())
            elif isinstance(value, tuple):
                yield from ((f"{field.name}.{i}", tensor) for i, tensor in enumerate(value))
            else:
                yield field.name, value

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors by name, for saving: contiguous copies, with no memory in common."""
        return {name: t.clone(memory_format=torch.contiguous_format) for name, t in self.named_tensors()}

    def _check_which(self, name: str, which: Tensor, *, numbers: bool = False) -> None:
        size = len(held := self.tensors()[0])
        if which.device.type not in ("cpu", held.device.type):
            raise ValueError(f"`{name}` must be on the device of the state, {held.device}; got {which.device}")
        if which.dtype == torch.bool and which.shape == (size,):
            return
        if not numbers or which.dim() != 1 or which.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"`{name}` must be a mask of the {size} sequences, torch.bool of shape [{size}]"
                f"{', or a row of their numbers' if numbers else ''}; got {which.dtype} of shape {list(which.shape)}"
            )
        if which.numel():
            check_places(name, which, size, "numbers of sequences")

    def check(self, shapes: dict[str, tuple[int, ...]], batch: int) -> None:
        """Raises a ValueError unless it has these shapes behind a batch of that many sequences."""
        if [t.shape for t in self.tensors()] == [(batch, *shape) for shape in shapes.values()]:
            return
        given = {name: tuple(t.shape) for name, t in self.named_tensors()}
        for name, shape in shapes.items():
            if given.get(name) != (batch, *shape):
                raise ValueError(
                    f"`state` must be one of this module for {batch} sequences, {name} of shape {[batch, *shape]}; got "
                    f"{list(given[name]) if name in given else None}. Start from state=None"
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors behind the batch."""
        return {name: tuple(t.shape[1:]) for name, t in self.named_tensors()}

    @classmethod
    def from_tensors(cls: type[Kind], tensors: dict[str, Tensor]) -> Kind:
        """Rebuilds a state from ``to_tensors``.

        Raises:
            ValueError: for tensors that are not those of this kind of state.
        """
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            groups.setdefault(head, {})[rest] = tensor
        hints = get_type_hints(cls)
        wanted = [field.name for field in fields(cls)]
        if sorted(groups) != sorted(wanted):
            raise ValueError(
                f"`tensors` must hold {wanted} for a {cls.__name__}; got {sorted(groups)}. A state goes with the model "
                "and the version of pyro-memory that made it: read the sequence again"
            )
        values: dict[str, Any] = {}
        for name, group in groups.items():
            kind = hints[name]
            if isinstance(kind, type) and issubclass(kind, State):
                values[name] = kind.from_tensors(group)
            elif kind is Tensor:
                values[name] = group[""]
            else:
                values[name] = tuple(group[str(i)] for i in range(len(group)))
        return cls(**values)


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SequenceState:
    """What a sequence model remembers: the state of each block's mixer, whose methods it has (see ``State``)."""

    blocks: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"SequenceState({len(self.blocks)} blocks, each with {type(self.blocks[0]).__name__})"

    def detach(self) -> SequenceState:
        """Gives the same state without its gradient."""
        return SequenceState(tuple(s.detach() for s in self.blocks))

    def to(self, *args: Any, **kwargs: Any) -> SequenceState:
        """Moves it to a device, or casts what is floating point."""
        return SequenceState(tuple(s.to(*args, **kwargs) for s in self.blocks))

    def select(self, which: Tensor) -> SequenceState:
        """Takes the sequences ``which``, by number or by a mask ``[batch]``, in that order; one may come twice."""
        return SequenceState(tuple(s.select(which) for s in self.blocks))

    def repeat(self, times: int) -> SequenceState:
        """Takes each sequence so many times, side by side: for beams, or several continuations."""
        return SequenceState(tuple(s.repeat(times) for s in self.blocks))

    def reset(self, which: Tensor, start: SequenceState) -> SequenceState:
        """Starts the sequences of the mask ``which [batch]`` again, from a ``start`` of one sequence."""
        return SequenceState(tuple(s.reset(which, b) for s, b in zip(self.blocks, start.blocks, strict=True)))

    def allclose(self, other: SequenceState, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
        """Whether it has the same numbers, to a tolerance."""
        same = (a.allclose(b, rtol, atol) for a, b in zip(self.blocks, other.blocks, strict=True))
        return len(self.blocks) == len(other.blocks) and all(same)

    def to_tensors(self) -> dict[str, Tensor]:
        """Gives the tensors by name, as safetensors saves them; ``SequenceModel.load_state`` puts them together."""
        return {f"{i}.{k}": t for i, s in enumerate(self.blocks) for k, t in s.to_tensors().items()}


def resolve(mixer: Any, x: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
    """Checks a mixer's arguments; gives x with zeros past the lengths, and the state to start from.

    Raises:
        ValueError: for an x that is not ``[batch, time, dim]``, lengths outside it, a state of other shapes.
    """
    if x.dim() != 3 or x.shape[-1] != mixer.dim or not x.shape[1]:
        raise ValueError(f"`x` must be [batch, time, {mixer.dim}] with at least one token; got shape {list(x.shape)}")
    batch, time = x.shape[:2]
    outside = lengths is not None and may_look(lengths) and bool(((lengths < 0) | (lengths > time)).any())
    if lengths is not None and (lengths.shape != (batch,) or outside):
        raise ValueError(
            f"`lengths` must lie in 0 to {time}, one for each of the {batch} sequences; got {lengths.tolist()}"
        )
    x = mask_past(x, lengths)
    if state is None:
        return x, mixer.initial_state(batch)
    state.check(mixer.state_shapes, batch)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and any(t.is_inference() for t in state.tensors()):
        state = state.map(torch.clone)  # autograd does not keep one made under inference_mode
    return x, state


def mask_past(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero past each sequence's length, ``[batch, time, dim]``."""
    if lengths is None:
        return x
    return x.masked_fill((torch.arange(x.shape[1], device=x.device) >= lengths[:, None])[..., None], 0)


def last_tokens(x: Tensor, size: int, lengths: Tensor | None) -> Tensor:
    """The last ``size`` tokens of each sequence, which ``x [batch, time, ...]`` ends with, or has at ``lengths``.

    A copy: a state must not hold on to all that came before.
    """
    if lengths is None:
        return x[:, x.shape[1] - size :].clone(memory_format=torch.contiguous_format)
    place = lengths[:, None] + torch.arange(size, device=x.device)
    return torch.take_along_dim(x, place.view(*place.shape, *[1] * (x.dim() - 2)), 1)


def check_lengths(x: Tensor, lengths: Tensor | None, *, least: int) -> None:
    """Raises a ValueError unless there is a length for each sequence of x, between ``least`` and its elements."""
    if lengths is None:
        return
    inside = lengths.shape == x.shape[:1] and bool(((lengths >= least) & (lengths <= x.shape[1])).all())
    if not inside:
        raise ValueError(
            f"`lengths` must be one for each of {len(x)} sequences, in {least} .. {x.shape[1]}; got {lengths.tolist()}"
        )
