"""A user's own store keeps the contract; broken in any one way, it fails and is told how."""

import pyro.distributions as dist
import pytest
import torch

from pyro_memory.testing.stores import check_store


class Shelf:
    """Holds vectors, and the last that was written in the first place."""

    def __init__(self, values, filled):
        self.values, self.filled = values, filled

    def __getitem__(self, a):
        return self.values[a]

    def prior(self):
        return dist.Categorical(logits=torch.zeros(len(self.values)).masked_fill(~self.filled, -torch.inf))

    def write(self, value):
        values, filled = self.values.clone(), self.filled.clone()
        values[0], filled[0] = value, True
        return type(self)(values, filled)

    def to(self, *args):
        return type(self)(self.values.to(*args), self.filled.to(torch.empty(0).to(*args).device))

    def to_tensors(self):
        return {"values": self.values, "filled": self.filled}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(**tensors)


class WritesInPlace(Shelf):
    def write(self, value):
        self.values[0] = value
        return type(self)(self.values, self.filled)


class GivesItself(Shelf):
    def write(self, value):
        self.values = self.values + value
        return self


class WritesNothing(Shelf):
    def write(self, value):
        return type(self)(self.values, self.filled)


class CountsReads(Shelf):
    def __init__(self, values, filled):
        super().__init__(values, filled)
        self.reads = torch.zeros(())

    def __getitem__(self, a):
        self.reads = self.reads + 1
        return super().__getitem__(a)


class Wears(Shelf):
    _worn = 0

    def __getitem__(self, a):
        self._worn += 1
        return super().__getitem__(a) * self._worn


class LosesItsMask(Shelf):
    def to_tensors(self):
        return {"values": self.values}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(tensors["values"], torch.ones(len(tensors["values"]), dtype=torch.bool))


class LosesWhatItReads(Shelf):
    _scale = 1.0

    def __getitem__(self, a):
        return super().__getitem__(a) * self._scale


class SavesNumbers(Shelf):
    def to_tensors(self):
        return super().to_tensors() | {"slots": 3}


class Unpickled(Shelf):
    def __init__(self, values, filled):
        super().__init__(values, filled)
        self._f = lambda value: value


class ForgetsInCopies(Shelf):
    def __getstate__(self):
        return {"values": self.values, "filled": torch.ones_like(self.filled)}


class CastsItsMask(Shelf):
    def to(self, *args):
        return type(self)(self.values.to(*args), self.filled.to(*args))


class CastsInPlace(Shelf):
    def to(self, *args):
        self.values = self.values.to(*args)
        return type(self)(self.values, self.filled)


class RoundsWhenMoved(Shelf):
    def to(self, *args):
        return type(self)(self.values.to(*args).round(), self.filled)


class RecallsAnything(Shelf):
    def prior(self):
        return dist.Categorical(logits=torch.zeros(len(self.values)))


class NeverRecalls(Shelf):
    def prior(self):
        return dist.Categorical(probs=torch.tensor([0.0, 0.0, 1.0]))


class Flattens(Shelf):
    def __getitem__(self, a):
        return self.values[a.flatten()]


class MixesAddresses(Shelf):
    def __getitem__(self, a):
        return self.values[a] if a.dim() < 2 else self.values[a] - self.values[a].mean(0)


class Wordless:
    def __init__(self, values, filled):
        self._values = values


def make(kind):
    return kind(torch.arange(6.0).reshape(3, 2) + 0.25, torch.tensor([False, True, True]))


def scaled():
    store = make(LosesWhatItReads)
    store._scale = 2.0
    return store


BROKEN = {
    "one written in place": (WritesInPlace, "writing must leave the old store as it was: .*; `values` differs"),
    "one that gives itself": (GivesItself, "writing must return a new GivesItself; got the same one"),
    "one that writes nothing": (WritesNothing, "the written store must differ from the old one"),
    "one that counts reads": (CountsReads, "reading must change nothing; `reads` differs"),
    "one that wears": (Wears, "reading twice must give the same"),
    "one that loses its mask": (LosesItsMask, "saved by to_tensors .* must hold the same; `filled` differs"),
    "one that loses what it reads": (scaled, "saved by to_tensors .* must read the same. Save all"),
    "one that saves numbers": (SavesNumbers, "`to_tensors` must give tensors only; slots is none. Wrap numbers"),
    "one that cannot be pickled": (Unpickled, "the store cannot be pickled"),
    "one that forgets in copies": (ForgetsInCopies, "a store deepcopied must hold the same; `filled` differs"),
    "one that casts its mask": (CastsItsMask, "must cast what is floating point and leave the rest; `filled` is"),
    "one cast in place": (CastsInPlace, "`.to` must give a new store and leave this one as it was; `values` differs"),
    "one that rounds": (RoundsWhenMoved, "`.to` must keep values; `values` differs"),
    "one that recalls anything": (RecallsAnything, "must give a slot that is not filled probability zero"),
    "one that never recalls": (NeverRecalls, "must give every filled slot a positive probability"),
    "one that flattens": (
        Flattens,
        r"for addresses of shape \[4\] .* must read each address by itself.*; got \[4, 2\]",
    ),
    "one that mixes addresses": (MixesAddresses, "must read each address by itself.* with other values"),
    "one that shows nothing": (Wordless, "a Wordless must hold tensors in public attributes"),
}


def test_a_user_s_store_keeps_its_contract():
    check_store(make(Shelf), write=lambda store: store.write(torch.ones(2)))
    check_store(make(Shelf), read=lambda store: (store.values[1], store.filled))


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_store_is_told_what_is_wrong(how):
    kind, message = BROKEN[how]
    store = kind() if kind is scaled else make(kind)
    with pytest.raises(AssertionError, match=message):
        check_store(store, write=lambda store: store.write(torch.ones(2)))
