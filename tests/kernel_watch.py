"""Watches what kernels in Triton's interpreter do to memory, as a GPU's memory and race checkers do.

The interpreter runs a program's operations one after the other, so it hides what a GPU punishes: an access outside the
tensors of the launch, two programs of a launch at one place, and a program that reads or writes over what it wrote
without ``tl.debug_barrier`` between, since the thread that wrote need not be the thread that comes after. Writing over
what a program read needs no barrier of its own here: the products in between have theirs.
Within the watch the interpreter rounds to bfloat16 as a GPU does.
"""

from contextlib import contextmanager

import numpy as np
import torch
from interpreter import rounding_cast
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

NOBODY, SEVERAL = -1, -2


class Launch:
    """The places of one launch: who wrote and read each byte, and how many barriers the writer had passed then."""

    def __init__(self, tensors):
        self.program, self.barriers = NOBODY, 0
        self.extents, self.storages = [], {}
        for t in (t for t in tensors if isinstance(t, torch.Tensor) and t.numel()):
            last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            self.extents.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize))
            storage = t.untyped_storage()
            if storage.data_ptr() not in self.storages:
                self.storages[storage.data_ptr()] = tuple(np.full(storage.nbytes(), NOBODY) for _ in range(3))

    def access(self, pointers, mask, writes):
        places = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.shape))
        places = places[np.broadcast_to(mask, places.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(places.shape, bool)
        for start, end in self.extents:
            inside |= (places >= start) & (places + size <= end)
        assert inside.all(), f"{(~inside).sum()} accesses outside the tensors of the launch"
        assert not writes or len(np.unique(places)) == len(places), "one store has two values for a place"
        for start, (writer, when, reader) in self.storages.items():
            here = places[(places >= start) & (places < start + len(writer))] - start
            others = (writer[here] != NOBODY) & (writer[here] != self.program)
            if writes:
                others |= (reader[here] != NOBODY) & (reader[here] != self.program)
            assert not others.any(), "two programs of a launch share a place, and one writes there"
            unfenced = (writer[here] == self.program) & (when[here] == self.barriers)
            assert not unfenced.any(), "a place is written, and used again with no tl.debug_barrier between"
            if writes:
                writer[here], when[here] = self.program, self.barriers
            else:
                reader[here] = np.where(np.isin(reader[here], (NOBODY, self.program)), self.program, SEVERAL)


@contextmanager
def watched(monkeypatch):
    """Within it a launch in the interpreter fails where memory is misused; gives a list with the launches so far."""
    launches = []
    run, to_program = GridExecutor.__call__, InterpreterBuilder.set_grid_idx
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    barrier = InterpreterBuilder.create_barrier

    def watched_run(self, *args, **options):
        launches.append(Launch([*args, *options.values()]))
        return run(self, *args, **options)

    def watched_program(self, x, y, z):
        launches[-1].program += 1
        return to_program(self, x, y, z)

    def watched_load(self, pointers, mask, *rest):
        launches[-1].access(pointers, mask.data, writes=False)
        return load(self, pointers, mask, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        launches[-1].access(pointers, mask.data, writes=True)
        return store(self, pointers, value, mask, *rest)

    def watched_barrier(self):
        launches[-1].barriers += 1
        return barrier(self)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
        patch.setattr(GridExecutor, "__call__", watched_run)
        patch.setattr(InterpreterBuilder, "set_grid_idx", watched_program)
        patch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", watched_store)
        patch.setattr(InterpreterBuilder, "create_barrier", watched_barrier)
        yield launches
