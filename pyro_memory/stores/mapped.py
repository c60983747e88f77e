"""A slot memory in files: opened without loading, appended to, read by address."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_memory.gate import check_places, checked, told
from pyro_memory.stores.files import replace_file
from pyro_memory.stores.slots import SlotMemory
from pyro_memory.stores.tensors import readable

MANIFEST = "memory.json"
DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
BLOCK = 65_536  # slots embedded between two writes


@checked
class MappedMemory(SlotMemory):
    """Holds the slots of a shared memory in files of a folder, which may be larger than RAM.

    ``create`` makes one, ``open`` maps one without reading it, ``append`` adds items, ``memory[a]`` reads slots in the
    default floating dtype. It is a value like every memory: ``append`` returns a new one, and the old one still reads
    the slots that it had. A crash while appending leaves the state before: items count once ``memory.json``, replaced
    as a whole, says so. All slots are filled.

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
        self.values = _mapped(self.folder, manifest["values"], slots)
        self.keys = None if manifest["keys"] is None else _mapped(self.folder, manifest["keys"], slots)
        self.mask = self.batch_dim = None
        self.ages = torch.zeros((), dtype=torch.long).expand(slots)
        self.seen = torch.tensor(slots)
        self._prior: dist.Categorical | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        event_shape: Iterable[int],
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
            ValueError: if the folder holds a memory already, or for another dtype.
        """
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            raise ValueError(
                f"`folder` must hold no memory yet; {folder} has one: `MappedMemory.open` it, or delete it"
            )
        for name, wanted in (("dtype", dtype), ("key_dtype", key_dtype)):
            if wanted not in DTYPES.values():
                raise ValueError(f"`{name}` must be one of {', '.join(DTYPES)}; got {wanted}")
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": 1,
            "slots": 0,
            "values": _entry("values.bin", dtype, event_shape),
            "keys": None if key_dim is None else _entry("keys-0.bin", key_dtype, [key_dim]),
        }
        for entry in (manifest["values"], manifest["keys"]):
            if entry is not None:
                (folder / entry["file"]).touch()
        _publish(folder, manifest)
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: str | Path) -> MappedMemory:
        """Maps the memory of a folder, without reading its items.

        Raises:
            ValueError: if there is none, or a file is shorter than ``memory.json`` says.
        """
        path = Path(folder) / MANIFEST
        try:
            manifest = json.loads(path.read_text())
            if manifest["format"] != 1:
                raise ValueError(f"format {manifest['format']}")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"`folder` must hold a memory that this version wrote; {path} cannot be read ({error}). Make one with "
                "`MappedMemory.create`"
            ) from error
        return cls(folder, manifest)

    def append(
        self, values: Float[Tensor, "item *event"], keys: Float[Tensor, "item dim"] | None = None
    ) -> MappedMemory:
        """Adds items (and their keys, where the memory has keys) and returns the longer memory.

        Raises:
            ValueError: if shapes do not fit, values do not fit the file's dtype, or another process appended since.
        """
        if values.shape[1:] != self.event_shape:
            raise ValueError(f"`values` must be [item, {_listed(self.event_shape)}]; got {list(values.shape)}")
        if (keys is None) != (self.keys is None) or (
            keys is not None and keys.shape != (len(values), self.keys.shape[-1])
        ):
            wanted = "None, as the memory has no keys" if self.keys is None else f"[item, {self.keys.shape[-1]}]"
            raise ValueError(f"`keys` must be {wanted}; got {None if keys is None else list(keys.shape)}")
        newest = MappedMemory.open(self.folder).slots
        if newest != self.slots:
            raise ValueError(
                f"`append` goes on from the newest state, of {newest} slots; this memory saw {self.slots}. Open "
                f"{self.folder} again"
            )
        for name, items in (("values", values), ("keys", keys)):
            if items is not None:
                _write(self.folder, self._manifest[name], self.slots, _fitting(items, self._manifest[name], name))
        manifest = self._manifest | {"slots": self.slots + len(values)}
        _publish(self.folder, manifest)
        return MappedMemory(self.folder, manifest)

    @torch.no_grad()
    def with_keys(self, address: Any, *, dtype: torch.dtype = torch.float16) -> MappedMemory:
        """Embeds every slot by a ``ContentAddress``, writes the keys beside the values, and returns the memory.

        Cost: O(slots) embeddings, a block at a time; earlier keys are replaced when all are written.
        """
        if not self.slots:
            raise ValueError("`with_keys` needs items to embed; got an empty memory. Append some first")
        if not hasattr(address, "keys_for"):
            raise TypeError(f"`address` must be a ContentAddress, which gives keys; got {told(address)}")
        number = 0 if self.keys is None else int(self._manifest["keys"]["file"].split("-")[1].split(".")[0]) + 1
        plain = self._manifest | {"keys": None}
        entry = None
        for start in range(0, self.slots, BLOCK):
            slots = torch.arange(start, min(start + BLOCK, self.slots))
            block = address.keys_for(MappedMemory(self.folder, plain), slots)
            entry = entry or _entry(f"keys-{number}.bin", dtype, block.shape[1:])
            _write(self.folder, entry, start, block.to(dtype))
        _publish(self.folder, plain | {"keys": entry})
        if self.keys is not None:
            (self.folder / self._manifest["keys"]["file"]).unlink()  # a mapping of it stays readable
        return MappedMemory.open(self.folder)

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
            self._prior = dist.Categorical(logits=torch.full((self.slots,), -math.log(self.slots)))
        return self._prior

    def loaded(self) -> SlotMemory:
        """Reads everything into a plain SlotMemory."""
        return SlotMemory(readable(self.values), None if self.keys is None else readable(self.keys))

    def to(self, *args: Any, **kwargs: Any) -> MappedMemory:
        """Gives itself for a CPU, where files are mapped.

        Raises:
            ValueError: for another device.
        """
        if torch.empty(0).to(*args, **kwargs).device.type != "cpu":
            raise ValueError("A MappedMemory is read on the CPU; use `memory.loaded().to(device)` where it fits")
        return self

    def write(self, *args: Any, **kwargs: Any) -> SlotMemory:
        """Raises: slots in a file are appended to, not overwritten."""
        raise ValueError("A MappedMemory does not overwrite slots; use `append`, or `memory.loaded().write(...)`")

    def with_none(self) -> SlotMemory:
        """Raises: it would copy the file."""
        raise ValueError('A MappedMemory has no room for a "none" slot; append a blank item once, and none_slot=False')

    def detach(self) -> MappedMemory:
        """Gives itself: files carry no graph."""
        return self


def _listed(shape: Iterable[int]) -> str:
    return ", ".join(map(str, shape))


def _entry(file: str, dtype: torch.dtype, shape: Iterable[int]) -> dict[str, Any]:
    return {"file": file, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}


def _bytes_of(entry: dict[str, Any], slots: int) -> int:
    return slots * math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize


def _mapped(folder: Path, entry: dict[str, Any], slots: int) -> Tensor:
    shape, dtype, path = (slots, *entry["shape"]), DTYPES[entry["dtype"]], folder / entry["file"]
    size = path.stat().st_size if path.exists() else 0
    if size < _bytes_of(entry, slots):
        raise ValueError(
            f"`{path}` is truncated: {slots} slots of {entry['shape']} {entry['dtype']} take {_bytes_of(entry, slots)} "
            f"bytes, it has {size}. Restore a copy of it, or write the memory again"
        )
    if not slots:
        return torch.zeros(shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).reshape(shape)


def _fitting(items: Tensor, entry: dict[str, Any], name: str) -> Tensor:
    """Brings items to the file's dtype, if that loses no more than rounding."""
    dtype = DTYPES[entry["dtype"]]
    stored = items.detach().cpu().to(dtype)
    fits = stored.isfinite().all() if dtype.is_floating_point else (stored == items.detach().cpu()).all()
    if not fits:
        wanted = "finite in that dtype" if dtype.is_floating_point else "integers from 0 to 255"
        raise ValueError(
            f"`{name}` must be {wanted}, since the file holds {entry['dtype']}; got others. Create the memory with a "
            "wider `dtype`"
        )
    return stored


def _write(folder: Path, entry: dict[str, Any], slots: int, items: Tensor) -> None:
    """Puts items after the first ``slots``, over what an earlier crash may have left there."""
    path = folder / entry["file"]
    path.touch()
    with path.open("r+b") as file:
        file.truncate(_bytes_of(entry, slots))
        file.seek(0, os.SEEK_END)
        file.write(items.contiguous().numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _publish(folder: Path, manifest: dict[str, Any]) -> None:
    replace_file(folder / MANIFEST, lambda temporary: temporary.write_text(json.dumps(manifest, indent=1) + "\n"))
