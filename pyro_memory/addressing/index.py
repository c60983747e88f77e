"""Finding the slots of highest score without scoring every slot."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pyro_memory.addressing.builds import BLOCK, Build, Then, key_tensors
from pyro_memory.gate import checked
from pyro_memory.kernels import nearest_slots
from pyro_memory.nets import evaluating
from pyro_memory.stores import SlotMemory

KINDS = ("auto", "brute", "flat", "ivf", "hnsw")


@checked
class SlotIndex:
    r"""Finds the slots whose keys have the largest dot product with a query.

    Args:
        kind: ``"brute"`` scores every slot, exactly, in torch; the others are faiss indices (the extra ``scale``):
            ``"flat"`` is exact, ``"ivf"`` searches the cells nearest to the query, ``"hnsw"`` walks a graph of
            neighbours. ``"auto"`` takes flat up to 20,000 slots, ivf up to 200,000, hnsw above; without faiss, brute.
        check_every: calls in training between measurements of the staleness.
        max_staleness: the staleness above which the index is built anew, see ``staleness``.
        effort: how thorough ivf and hnsw search: cells probed, or nodes kept on the walk (at least twice the slots
            asked for).

    Attributes:
        keys, mask: what it was built from, ``[slot, dim]``; a mapped file stays one.
        last_staleness: the last measurement; ``builds``: how often it was built.

    It never answers for keys that are gone: where keys or mask were written on in place ``search`` builds it anew, and
    a ``NearestAddress`` asks for the index of its memory and its weights as they are (``settle``), or, while its key
    network learns, for one that may be stale within the limit (``follow``).

    faiss holds a copy in memory, in half precision for ivf and hnsw. Cost: brute and flat O(slots x dim) a query;
    hnsw about O(log slots), after a build of O(slots log slots).

    References: Billion-scale similarity search with GPUs (Johnson et al., 2017), https://arxiv.org/abs/1702.08734;
    Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs (Malkov &
    Yashunin, 2016), https://arxiv.org/abs/1603.09320
    """

    def __init__(
        self, kind: str = "auto", *, check_every: int = 100, max_staleness: float = 0.1, effort: int = 64
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}; got {kind!r}")
        if check_every < 1 or effort < 1 or not max_staleness >= 0:
            raise ValueError(
                "`check_every` and `effort` must be at least 1 and `max_staleness` not negative; got "
                f"{check_every}, {effort} and {max_staleness}"
            )
        self.kind, self.check_every, self.max_staleness, self.effort = kind, check_every, max_staleness, effort
        self.last_staleness, self.builds = 0.0, 0
        self._now: Build | None = None  # what is searched
        self._settled: Build | None = None
        self._learning: Build | None = None

    @property
    def keys(self) -> Tensor | None:
        return None if self._now is None else self._now.keys

    @property
    def mask(self) -> Tensor | None:
        return None if self._now is None else self._now.mask

    def __repr__(self) -> str:
        size = "empty" if self.keys is None else f"{len(self.keys)} slots"
        return f"SlotIndex({self.kind}, {size}, builds={self.builds}, staleness={self.last_staleness:.3g})"

    def build(self, keys: Float[Tensor, "slot dim"], mask: Bool[Tensor, " slot"] | None = None) -> SlotIndex:
        """Builds it from keys, of which ``mask`` leaves out the empty slots, and returns it.

        Raises:
            ValueError: if there are no keys. ImportError: if the kind needs faiss and it is not installed.
        """
        if keys.dim() != 2 or not len(keys) or (mask is not None and not mask.any()):
            raise ValueError(f"`keys` must be [slot, dim] with at least one filled slot; got shape {list(keys.shape)}")
        build = self._now = Build(keys.detach(), mask)
        kind = _chosen(self.kind, build.count)
        build.faiss = None if kind == "brute" else self._filled(kind, build)
        self.builds += 1
        return self

    def _filled(self, kind: str, build: Build) -> Any:
        faiss, count = _faiss(), build.count
        dim, half = build.keys.shape[-1], faiss.ScalarQuantizer.QT_fp16
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWSQ(dim, half, 32, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 64
        else:
            cells = max(1, min(int(2 * math.sqrt(count)), count // 40))
            index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, cells, half, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:  # forty keys a cell are what faiss wants
            sample = max(BLOCK, 40 * int(2 * math.sqrt(count)))
            draw = torch.Generator("cpu").manual_seed(0)
            index.train(build.block(torch.randperm(count, generator=draw, device="cpu")[:sample]))
        for part in torch.arange(count, device="cpu").split(BLOCK):
            index.add(build.block(part))
        return index

    def search(self, query: Float[Tensor, "row dim"], nearest: int) -> Int[Tensor, "row nearest"]:
        """Finds ``nearest`` distinct filled slots for each query, likeliest first.

        Raises:
            ValueError: before ``build``, for queries of another dimension, or more slots than there are.
        """
        if self.keys is None:
            raise ValueError("`search` needs keys; call `build` first, or use the index in a NearestAddress")
        if query.shape[-1] != self.keys.shape[-1]:
            raise ValueError(
                f"`query` must have the dimension of the index's keys, {self.keys.shape[-1]}; got {query.shape[-1]}. "
                "Build the index from keys of the same embedding"
            )
        if not self._now.whole:  # written on since
            self.build(self.keys, self.mask)
        build = self._now
        if not 1 <= nearest <= build.count:
            raise ValueError(f"`nearest` must lie between 1 and the index's {build.count} filled slots; got {nearest}")
        if build.faiss is None:
            return nearest_slots(query, build.keys, nearest, mask=build.mask)[0]
        places = torch.from_numpy(self._search(query, nearest)).to(query.device)
        short = (places < 0).any(-1)  # a walk that found too few: score every slot for that query
        slots = places.clamp(min=0) if build.slots is None else build.slots[places.clamp(min=0)]
        if short.any():
            slots[short] = nearest_slots(query[short], build.keys, nearest, mask=build.mask)[0]
        return slots

    def _search(self, query: Tensor, nearest: int) -> Any:
        faiss = _faiss()
        effort = max(self.effort, 2 * nearest)
        options = {"IndexHNSWSQ": lambda: faiss.SearchParametersHNSW(efSearch=effort)}
        options["IndexIVFScalarQuantizer"] = lambda: faiss.SearchParametersIVF(nprobe=self.effort)
        params = options.get(type(self._now.faiss).__name__, lambda: None)()
        return self._now.faiss.search(query.detach().float().cpu().contiguous().numpy(), nearest, params=params)[1]

    def recall(self, query: Float[Tensor, "row dim"], nearest: int) -> float:
        """Measures the share of the true nearest slots, by the index's own keys, that it finds."""
        found = self.search(query, nearest)
        true = nearest_slots(query, self.keys, nearest, mask=self.mask)[0]
        return (found.unsqueeze(-1) == true.unsqueeze(-2)).any(-1).double().mean().item()

    def staleness(self, current: Float[Tensor, "probe dim"], slots: Int[Tensor, " probe"]) -> float:
        """Measures how far keys have moved since the build: the mean of ``||now - then|| / ||now||`` over slots."""
        moved = (current - self.keys[slots].to(current.dtype)).norm(dim=-1)
        return (moved / current.norm(dim=-1).clamp(min=1e-12)).mean().item()

    @torch.no_grad()
    def settle(self, address: nn.Module, memory: SlotMemory) -> None:
        """Makes it the index of a memory's keys as they are: builds it, unless memory and key network are unchanged."""
        tensors = key_tensors(address)
        known = [b for b in (self._settled, self._learning) if b is not None and b.is_of(memory, tensors)]
        self._now = self._settled = known[0] if known else self._made(address, memory, tensors)

    @torch.no_grad()
    def follow(self, address: nn.Module, memory: SlotMemory, then: Then, *, probes: int = 256) -> None:
        """Makes it an index of a memory's keys that may be stale, for a key network that learns.

        It is built when the memory is another one or was written on, and when ``probes`` slots say that it is too
        stale: measured at every ``check_every``-th call, and when weights have moved by more than ``max_staleness`` of
        their length, as when others were loaded. ``settle`` does not touch it.

        Args:
            then: keeps the weights of the last build among those of the address, so that a run which goes on from a
                checkpoint has the index that it had.
        """
        tensors = key_tensors(address)
        build = self._learning
        if then.known and (build is None or build.digest != then.digest):
            build = self._again(address, memory, then)
        if build is None or not build.holds(memory):
            self._learn(address, memory, tensors, then)
            return
        self._now, self._learning, self._settled = build, build, None
        then.calls += 1
        if int(then.calls) % self.check_every and not then.far_from(tensors, self.max_staleness):
            return
        filled = torch.arange(len(build.keys), device="cpu") if build.slots is None else build.slots.cpu()
        places = torch.linspace(0, len(filled) - 1, min(probes, len(filled)), device="cpu").long()
        slots = filled[places].to(build.keys.device)
        with evaluating(address):
            self.last_staleness = self.staleness(address.keys_for(memory, slots), slots)
        if self.last_staleness > self.max_staleness:
            self._learn(address, memory, tensors, then)

    def _made(self, address: nn.Module, memory: SlotMemory, tensors: dict[str, Tensor]) -> Build:
        self.build(address.embed(memory), memory.mask)
        self._now.made_from(memory, tensors)
        return self._now

    def _learn(self, address: nn.Module, memory: SlotMemory, tensors: dict[str, Tensor], then: Then) -> None:
        fresh = self._settled is not None and self._settled.is_of(memory, tensors)
        self._now = self._learning = self._settled if fresh else self._made(address, memory, tensors)
        self._settled = None  # of weights that are about to move
        then.keep(tensors, self._now.digest)

    def _again(self, address: nn.Module, memory: SlotMemory, then: Then) -> Build | None:
        """The index that ``then`` tells of, if it was one of this memory."""
        twin = copy.deepcopy(address)
        for tensor, value in zip(key_tensors(twin).values(), then.weights, strict=True):
            tensor.copy_(value)
        build = self._made(twin, memory, key_tensors(twin))
        return build if build.digest == then.digest else None


def _chosen(kind: str, count: int) -> str:
    if kind != "auto":
        return kind
    try:
        _faiss()
    except ImportError:
        return "brute"
    return "flat" if count <= 20_000 else "ivf" if count <= 200_000 else "hnsw"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'This `kind` of index needs faiss: pip install "pyro-memory[scale]", or use kind="brute"'
        ) from error
    return faiss
