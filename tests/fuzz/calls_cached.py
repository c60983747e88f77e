"""A small call of each public callable of a memory of memories."""

import torch
from fuzz.parts import longs

from pyro_memory import RecallAddress
from pyro_memory.guides import CachedTitansGuide
from pyro_memory.models import CachedTitans, LSTMMixer, NeuralMemory, SequenceModel, StateCache

MEMORY = {"heads": 2, "chunk_size": 2}


def parts():
    return {"reader": SequenceModel.tokens(7, LSTMMixer, dim=8, blocks=1), "memory": NeuralMemory(8, **MEMORY)}


def states():
    return StateCache(**parts(), key_dim=6, segment=4)


def model():
    return CachedTitans.tokens(7, LSTMMixer, dim=8, key_dim=6, segment=4, **MEMORY)


def guide():
    return CachedTitansGuide.mlp(states(), 8)


def tokens(time=5):
    return torch.randint(7, (2, time))


def read(one):
    return {"x": tokens(), "past": one.states.remember(tokens(8)).detach(), "mask": torch.ones(2, 5, dtype=torch.bool)}


def asked(one, *names):
    call = read(one)
    return {name: call[name] for name in names}


def at(one):
    return {"h": one.states.present(tokens()).detach(), "cache": read(one)["past"]}


def of(make, method, arguments):
    """A row: a method of what is made, and its arguments."""

    def row():
        one = make()
        return (one if method == "forward" else getattr(one, method)), arguments(one)

    return row


ROWS = {
    "RecallAddress": lambda: (RecallAddress, {
        "states": (one := model()).states, "content": one.address.content, "dim": 8, "hidden": 8,
    }),
    "RecallAddress.forward": of(lambda: model().address, "forward", lambda a: {
        "h": torch.randn(2, 5, 8), "cache": a.states.remember(tokens(8)).detach(),
    }),
    "StateCache": lambda: (StateCache, {**parts(), "key_dim": 6, "segment": 4, "name": "states"}),
    "StateCache.reserve": of(states, "reserve", lambda s: {"batch": 2, "slots": 3}),
    "StateCache.remember": of(states, "remember", lambda s: {"past": tokens(8), "lengths": longs(8, 3)}),
    "StateCache.present": of(states, "present", lambda s: {"x": tokens()}),
    "StateCache.recall": of(states, "recall", lambda s: {
        "h": torch.randn(2, 5, 8), "slots": s.remember(tokens(4)).values.detach(),
    }),
    "StateCache.given": of(states, "given", lambda s: {
        "x": tokens(), "past": s.remember(tokens(8)).detach(), "none_slot": True,
    }),
    "StateCache.every": of(states, "every", lambda s: {"cache": s.remember(tokens(8)).detach()}),
    "StateCache.weights": of(states, "weights", lambda s: {"slots": torch.randn(2, *s.event_shape)}),
    "CachedTitans": lambda: (CachedTitans, {
        "states": (one := model()).states, "address": one.address, "none_slot": True, "name": "cached",
    }),
    "CachedTitans.tokens": lambda: (CachedTitans.tokens, {
        "vocabulary": 7, "mixer": LSTMMixer, "dim": 8, "key_dim": 6, "segment": 4, "none_slot": False, "name": "cached",
        **MEMORY,
    }),
    "CachedTitans.a_dist": of(model, "a_dist", at),
    "CachedTitans.x_dist_at": of(model, "x_dist_at", lambda m: {"a": torch.randint(2, (2, 5)), **at(m)}),
    "CachedTitans.forward": of(model, "forward", read),
    "CachedTitans.marginal": of(model, "marginal", read),
    "CachedTitans.x_dist": of(model, "x_dist", lambda m: asked(m, "x", "past")),
    "CachedTitans.log_evidence": of(model, "log_evidence", lambda m: asked(m, "x", "past")),
    "CachedTitansGuide": lambda: (CachedTitansGuide, {
        "states": (one := guide()).states, "address": one.address, "none_slot": False, "name": "guide",
    }),
    "CachedTitansGuide.mlp": lambda: (
        CachedTitansGuide.mlp, {"states": states(), "hidden": 8, "none_slot": True, "name": "guide"},
    ),
    "CachedTitansGuide.a_dist": of(guide, "a_dist", lambda g: {
        "x": tokens(), "cache": g.states.remember(tokens(8)).detach(),
    }),
    "CachedTitansGuide.forward": of(guide, "forward", read),
}  # fmt: skip
