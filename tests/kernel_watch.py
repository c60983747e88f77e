"""Watches what kernels in Triton's interpreter do to memory, as a GPU's memory and race checkers do.

The interpreter runs a program's operations one after the other, so it hides what a GPU punishes: an access outside the
tensors of the launch, two programs of a launch at one place, and a program that reads or writes over what it wrote
without ``tl.debug_barrier`` between, since the thread that wrote need not be the thread that comes after. Writing over
what a program read needs no barrier of its own here: the products in between have theirs.
Programs may meet at a place where an atomic operation that releases, of the one, comes before one that acquires, of the
other: clocks of what each knows of the others say so. Those of a launch that has ``p_tickets`` run side by side.
Within the watch the interpreter rounds to bfloat16 as a GPU does.
"""

import inspect
from contextlib import contextmanager

import numpy as np
import torch
from interpreter import rounding_cast
from kernel_programs import SideBySide
from triton._C.libtriton import ir
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

NOBODY, SEVERAL = -1, -2
TOGETHER = {}  # options of SideBySide


class Launch:
    """The places of one launch: who wrote and read each byte, and how many barriers the writer had passed then."""

    def __init__(self, tensors):
        self.program, self.barriers, self.together = NOBODY, {}, None
        self.times, self.known, self.left = {}, {}, {}  # of programs: releases, what it knows of others'; of flags
        self.extents, self.storages = [], {}
        for t in (t for t in tensors if isinstance(t, torch.Tensor) and t.numel()):
            last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            self.extents.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.itemsize))
            storage = t.untyped_storage()
            if storage.data_ptr() not in self.storages:
                places = [np.full(storage.nbytes(), NOBODY) for _ in range(4)]
                self.storages[storage.data_ptr()] = (*places, {})

    def access(self, pointers, mask, writes):
        places = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.shape))
        places = places[np.broadcast_to(mask, places.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(places.shape, bool)
        for start, end in self.extents:
            inside |= (places >= start) & (places + size <= end)
        assert inside.all(), f"{(~inside).sum()} accesses outside the tensors of the launch"
        assert not writes or len(np.unique(places)) == len(places), "one store has two values for a place"
        me, barriers, time = self.program, self.barriers.get(self.program, 0), self.times.get(self.program, 0)
        for start, (writer, when, fenced, reader, readers) in self.storages.items():
            here = places[(places >= start) & (places < start + len(writer))] - start
            others = (writer[here] != NOBODY) & (writer[here] != me) & (when[here] >= self.knows(writer[here]))
            if writes and self.together is None:
                others |= (reader[here] != NOBODY) & (reader[here] != me)
            elif writes:
                for other, read in readers.items():
                    others |= (other != me) & (read[here] >= self.known.get(me, {}).get(other, 0))
            assert not others.any(), "two programs of a launch share a place, and one writes there"
            unfenced = (writer[here] == me) & (fenced[here] == barriers)
            assert not unfenced.any(), "a place is written, and used again with no tl.debug_barrier between"
            if writes:
                writer[here], when[here], fenced[here] = me, time, barriers
            elif self.together is None:
                reader[here] = np.where(np.isin(reader[here], (NOBODY, me)), me, SEVERAL)
            elif len(here):
                readers.setdefault(me, np.full(len(writer), NOBODY))[here] = time

    def knows(self, programs):
        """How many releases of each of these programs the current one has seen."""
        known = self.known.get(self.program, {})
        return np.array([known.get(int(p), 0) for p in programs.ravel()], int).reshape(programs.shape)

    def synchronize(self, flag, releases, acquires):
        me = self.program
        known, left = self.known.setdefault(me, {}), self.left.setdefault(flag, {})
        if releases:
            self.times[me] = self.times.get(me, 0) + 1
            known[me] = self.times[me]
            left.update({p: max(n, left.get(p, 0)) for p, n in known.items()})
        if acquires:
            known.update({p: max(n, known.get(p, 0)) for p, n in left.items()})


@contextmanager
def watched(monkeypatch):
    """Within it a launch in the interpreter fails where memory is misused; gives a list with the launches so far."""
    launches = []
    run, to_program = GridExecutor.__call__, InterpreterBuilder.set_grid_idx
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    barrier, atomic = InterpreterBuilder.create_barrier, InterpreterBuilder.create_atomic_rmw

    def watched_run(self, *args, **options):
        launch = Launch([*args, *options.values()])
        launches.append(launch)
        fn = self.fn
        given = dict(zip(inspect.signature(fn).parameters, args, strict=False))
        if given.get("p_tickets") is not None:
            launch.together = self.fn = SideBySide(fn, lambda i: setattr(launch, "program", i), **TOGETHER)
        try:
            return run(self, *args, **options)
        finally:
            self.fn = fn

    def watched_program(self, x, y, z):
        launches[-1].program += 1
        return to_program(self, x, y, z)

    def watched_load(self, pointers, mask, *rest):
        launches[-1].access(pointers, mask.data, writes=False)
        return load(self, pointers, mask, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        launches[-1].access(pointers, mask.data, writes=True)
        if launches[-1].together is not None:
            launches[-1].together.polls = 0
        return store(self, pointers, value, mask, *rest)

    def watched_barrier(self):
        launch = launches[-1]
        launch.barriers[launch.program] = launch.barriers.get(launch.program, 0) + 1
        return barrier(self)

    def watched_atomic(self, operation, pointer, value, mask, sem, scope):
        launch = launches[-1]
        both = sem == ir.MEM_SEMANTIC.ACQUIRE_RELEASE
        if launch.together is not None and not value.data.any():
            launch.together.poll()
        flag = int(pointer.data.ravel()[0])
        assert any(start <= flag < end for start, end in launch.extents), "an atomic operation outside of the tensors"
        result = atomic(self, operation, pointer, value, mask, sem, scope)
        launch.synchronize(flag, both or sem == ir.MEM_SEMANTIC.RELEASE, both or sem == ir.MEM_SEMANTIC.ACQUIRE)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
        patch.setattr(GridExecutor, "__call__", watched_run)
        patch.setattr(InterpreterBuilder, "set_grid_idx", watched_program)
        patch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", watched_store)
        patch.setattr(InterpreterBuilder, "create_barrier", watched_barrier)
        patch.setattr(InterpreterBuilder, "create_atomic_rmw", watched_atomic)
        yield launches
