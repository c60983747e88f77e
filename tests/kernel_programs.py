"""Runs the programs of a launch side by side in Triton's interpreter, which by itself runs one after the other.

A program that polls by ``tl.atomic_add(p, 0)`` gives its turn to the next. Programs start in an order drawn by a seed,
no more at once than there are slots, as on a GPU where the others wait for one to end.
"""

import inspect
import math
import threading

import numpy as np
from triton.runtime.interpreter import interpreter_builder as builder

MOST_POLLS = 2000  # of all programs, with no store between


class SideBySide:
    """Stands in for a kernel's function: takes the programs' calls, and runs them all with the last one."""

    def __init__(self, fn, to_program, slots=10**6, seed=0):
        self.fn, self.to_program, self.slots, self.seed = fn, to_program, slots, seed
        self.__globals__, self.__name__, self.__signature__ = fn.__globals__, fn.__name__, inspect.signature(fn)
        self.calls, self.error, self.polls = [], None, 0

    def __call__(self, **args):
        self.calls.append((builder.grid_idx, args))
        if len(self.calls) == math.prod(builder.grid_dim):
            self.run()

    def run(self):
        count = len(self.calls)
        self.waiting = [int(i) for i in np.random.default_rng(self.seed).permutation(count)]
        self.turns, self.done, self.running = [threading.Semaphore(0) for _ in range(count)], threading.Event(), []
        for _ in range(min(self.slots, count)):
            self.start()
        self.give(self.running[0])
        self.done.wait()
        if self.error is not None:
            raise self.error

    def start(self):
        i = self.waiting.pop(0)
        self.running.append(i)
        threading.Thread(target=self.program, args=(i,), daemon=True).start()

    def program(self, i):
        self.turns[i].acquire()
        try:
            if self.error is None:
                self.fn(**self.calls[i][1])
        except BaseException as error:
            self.error = self.error or error
        place = self.running.index(i)
        self.running.remove(i)
        if self.waiting and self.error is None:
            self.start()
        if self.running:
            self.give(self.running[place % len(self.running)])
        else:
            self.done.set()

    def give(self, i):
        """The turn to program i."""
        builder.grid_idx = self.calls[i][0]
        self.to_program(i)
        self.turns[i].release()

    def poll(self):
        """Called by the program whose turn it is: gives it to the next, and comes back when it is given again."""
        self.polls += 1
        if self.polls > MOST_POLLS:
            raise RuntimeError("programs wait for one another for ever")
        at = builder.grid_idx
        i = next(i for i, (place, _) in enumerate(self.calls) if place == at)
        after = self.running[(self.running.index(i) + 1) % len(self.running)]
        if after != i:
            self.give(after)
            self.turns[i].acquire()
        if self.error is not None:
            raise RuntimeError("another program failed")
