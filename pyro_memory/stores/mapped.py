"""A slot memory in files: opened without loading, appended to, read by address."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from pyro_memory.gate import check_places, checked, told
from pyro_memory.stores.folder import (
    DTYPES,
    MANIFEST,
    entry_of,
    fitting,
    locked,
    map_items,
    publish,
    read_manifest,
    said,
    write_items,
)  # fmt: skip
from pyro_memory.stores.slots import SlotMemory
from pyro_memory.stores.tensors import readable

BLOCK = 65_536  # slots embedded between two writes


@checked
class MappedMemory(SlotMemory):
    """Holds the slots of a shared memory in files of a folder, which may be larger than RAM.

    ``create`` makes one, ``open`` maps one without reading it, ``append`` adds items, ``memory[a]`` reads slots in the
    default floating dtype. It is a value like every memory: ``append`` returns a new one, and the old one still reads
    the slots that it had. A crash while appending, or a full disk, leaves the state before: items count once
    ``memory.json``, replaced as a whole, says so. One process appends at a time; others go on reading what they opened.
    All slots are filled. ``memory.json`` is checked against a sum when it is opened; the items, unread then, are not.

    Files: ``memory.json``, ``values.bin`` and, with keys, ``keys-*.bin``: the items' bytes, one after the other.

    Example::

        memory = MappedMemory.create("glyphs-1m", (1, 28, 28))
        for images in batches:
            memory = memory.append(images)
        memory = memory.with_keys(guide.address)  # embedded, in half precision, for a FrozenAddress
    """

    def __init__(self, folder: str | Path, manifest: dict[str, Any]) -> None:
        self.folder, self._manifest = Path(folder), manifest
        slots = manifest["slots"]
        self.values = map_items(self.folder, manifest["values"], slots)
        self.keys = None if manifest["keys"] is None else map_items(self.folder, manifest["keys"], slots)
        self.mask = self.batch_dim = None
        self.ages = torch.zeros((), dtype=torch.long, device="cpu").expand(slots)
        self.seen = torch.tensor(slots, device="cpu")
        self._prior: dist.Categorical | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        event_shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.uint8,
        key_dim: int | None = None,
        key_dtype: torch.dtype = torch.float16,
    ) -> MappedMemory:
        """Makes an empty memory in a folder.

        Args:
            folder: made where it is missing.
            event_shape: the shape of one item.
            dtype: of the items in the file: uint8 (binary images, or integers from 0 to 255), float16, 32 or 64.
            key_dim: the keys' dimension, if items are appended with keys.
            key_dtype: of the keys in the file.

        Raises:
            ValueError: if the folder holds a memory already, or files of its names, or for another dtype.
            OSError: if the folder cannot be written.
        """
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            raise ValueError(
                f"`folder` must hold no memory yet; {folder} has one: `MappedMemory.open` it, or delete it"
            )
        for name, wanted in (("dtype", dtype), ("key_dtype", key_dtype)):
            if wanted not in DTYPES.values():
                raise ValueError(f"`{name}` must be one of {', '.join(DTYPES)}; got {wanted}")
        manifest = {
            "format": 1,
            "slots": 0,
            "values": entry_of("values.bin", dtype, event_shape),
            "keys": None if key_dim is None else entry_of("keys-0.bin", key_dtype, [key_dim]),
        }
        files = [folder / entry["file"] for entry in (manifest["values"], manifest["keys"]) if entry is not None]
        full = [file for file in files if file.exists() and file.stat().st_size]
        if full:  # what a killed `create` left is empty
            raise ValueError(f"`folder` must hold no file of a memory's; {full[0]} is there. Choose another folder")
        with said(folder, 0):
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                file.touch()
            publish(folder, manifest)
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: str | Path) -> MappedMemory:
        """Maps the memory of a folder, without reading its items.

        Raises:
            ValueError: if there is none, ``memory.json`` is damaged, or a file is shorter than it says.
        """
        return cls(folder, read_manifest(Path(folder)))

    def append(self, values: Num[Tensor, "item *event"], keys: Float[Tensor, "item dim"] | None = None) -> MappedMemory:
        """Adds items (and their keys, where the memory has keys) and returns the longer memory.

        Raises:
            ValueError: if shapes do not fit, values do not fit the file's dtype, or another process appended since, or
                is appending.
            OSError: if the files cannot be written; they hold the slots that they had.
        """
        if values.shape[1:] != self.event_shape:
            raise ValueError(f"`values` must be [item, {_listed(self.event_shape)}]; got {list(values.shape)}")
        if (keys is None) != (self.keys is None) or (
            keys is not None and keys.shape != (len(values), self.keys.shape[-1])
        ):
            wanted = "None, as the memory has no keys" if self.keys is None else f"[item, {self.keys.shape[-1]}]"
            raise ValueError(f"`keys` must be {wanted}; got {None if keys is None else list(keys.shape)}")
        stored = {
            name: fitting(items, self._manifest[name], name)
            for name, items in (("values", values), ("keys", keys)) if items is not None
        }  # fmt: skip
        manifest = self._manifest | {"slots": self.slots + len(values)}
        with said(self.folder, self.slots), self._newest("append"):
            for name, items in stored.items():
                write_items(self.folder, self._manifest[name], self.slots, items)
            publish(self.folder, manifest)
        return MappedMemory(self.folder, manifest)

    @contextmanager
    def _newest(self, what: str) -> Iterator[None]:
        """Keeps other processes from writing while this one goes on from the newest state.

        Raises:
            ValueError: if another one is writing, or wrote since.
        """
        with open(self.folder / self._manifest["values"]["file"], "rb") as file:
            if not locked(file):
                raise ValueError(f"`{what}` needs the memory to itself; another process writes to {self.folder}. Wait")
            newest = MappedMemory.open(self.folder)
            if newest._manifest != self._manifest:
                raise ValueError(
                    f"`{what}` goes on from the newest state, of {newest.slots} slots; this memory saw {self.slots}, "
                    f"or other keys. Open {self.folder} again"
                )
            yield

    @torch.no_grad()
    def with_keys(self, address: nn.Module, *, dtype: torch.dtype = torch.float16) -> MappedMemory:
        """Embeds every slot by a ``ContentAddress``, writes the keys beside the values, and returns the memory.

        Cost: O(slots) embeddings, a block at a time; earlier keys are replaced when all are written.

        Raises:
            ValueError: for an empty memory, keys that do not fit ``dtype``, or one that is not the newest state.
            OSError: if the files cannot be written.
        """
        if not self.slots:
            raise ValueError("`with_keys` needs items to embed; got an empty memory. Append some first")
        if not hasattr(address, "keys_for"):
            raise TypeError(f"`address` must be a ContentAddress, which gives keys; got {told(address)}")
        with said(self.folder, self.slots), self._newest("with_keys"):
            self._embed(address, dtype)
        return MappedMemory.open(self.folder)

    def _embed(self, address: Any, dtype: torch.dtype) -> None:
        number = 0 if self.keys is None else int(self._manifest["keys"]["file"].split("-")[1].split(".")[0]) + 1
        plain = self._manifest | {"keys": None}
        entry = None
        for start in range(0, self.slots, BLOCK):
            slots = torch.arange(start, min(start + BLOCK, self.slots), device="cpu")
            block = address.keys_for(MappedMemory(self.folder, plain), slots)
            entry = entry or entry_of(f"keys-{number}.bin", dtype, block.shape[1:])
            write_items(self.folder, entry, start, fitting(block, entry, "dtype"))
        publish(self.folder, plain | {"keys": entry})
        if self.keys is not None:
            (self.folder / self._manifest["keys"]["file"]).unlink()  # a mapping of it stays readable

    def head(self, slots: int) -> MappedMemory:
        """Gives the memory of the first ``slots`` items, for reading.

        Raises:
            ValueError: if there are fewer.
        """
        if not 0 <= slots <= self.slots:
            raise ValueError(f"`slots` must lie between 0 and the memory's {self.slots}; got {slots}")
        return MappedMemory(self.folder, self._manifest | {"slots": slots})

    def gather(self, tensor: Tensor, a: Int[Tensor, "*address"]) -> Tensor:
        """Takes entries at addresses ``a``, in a floating dtype."""
        check_places("a", a, self.slots, "the slots")
        return readable(tensor[a])

    def read(self, a: Int[Tensor, "*address"], f: Callable[[Tensor], Any]) -> Any:
        """Computes ``f(memory[a])``."""
        return f(self[a])

    def prior(self) -> dist.Categorical:
        """Gives the uniform distribution over the slots."""
        self.check_filled()
        if self._prior is None:
            self._prior = dist.Categorical(logits=torch.full((self.slots,), -math.log(self.slots), device="cpu"))
        return self._prior

    def loaded(self) -> SlotMemory:
        """Reads everything into a plain SlotMemory."""
        return SlotMemory(readable(self.values), None if self.keys is None else readable(self.keys))

    def to(self, *args: Any, **kwargs: Any) -> MappedMemory:
        """Gives itself for a CPU, where files are mapped.

        Raises:
            ValueError: for another device.
        """
        if torch.empty(0, device="cpu").to(*args, **kwargs).device.type != "cpu":
            raise ValueError("A MappedMemory is read on the CPU; use `memory.loaded().to(device)` where it fits")
        return self

    def to_tensors(self) -> dict[str, Tensor]:
        """Raises: it is in files already."""
        raise ValueError("A MappedMemory is saved: open its folder again, or save `memory.loaded().to_tensors()`")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> MappedMemory:
        """Raises: it needs a folder."""
        raise ValueError("A MappedMemory needs a folder: use `MappedMemory.create(folder, ...).append(values)`")

    def write(self, *args: Any, **kwargs: Any) -> SlotMemory:
        """Raises: slots in a file are appended to, not overwritten."""
        raise ValueError("A MappedMemory does not overwrite slots; use `append`, or `memory.loaded().write(...)`")

    def with_none(self) -> SlotMemory:
        """Raises: it would copy the file."""
        raise ValueError('A MappedMemory has no room for a "none" slot; append a blank item once, and none_slot=False')

    def detach(self) -> MappedMemory:
        """Gives itself: files carry no graph."""
        return self


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
