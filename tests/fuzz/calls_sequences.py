"""A small call of each public callable of the models of sequences."""

from functools import partial

import pyro.distributions as dist
import torch
from fuzz.parts import ink, longs, series_model, tokens_model
from torch import nn

from pyro_memory import SlotMemory
from pyro_memory.guides import TitansAddressingGuide
from pyro_memory.models import (
    DLinear,
    LSTMMixer,
    NeuralMemory,
    NormalReadout,
    PatchForecaster,
    SequenceModel,
    SequenceState,
    StudentTReadout,
    TitansAddressing,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    TokenReadout,
    TransformerMixer,
)

ODD = (1, 3, 3)
MEMORY = {"heads": 2, "chunk_size": 2}
MIXERS = {
    "LSTMMixer": (lambda: LSTMMixer(8), {"hidden": 6}),
    "NeuralMemory": (lambda: NeuralMemory(8, **MEMORY), {
        **MEMORY, "head_dim": 4, "depth": 2, "expansion": 2, "activation": "silu", "residual_norm": True,
        "convolution": 2, "momentum": True, "weight_decay": True, "channel_decay": True, "max_lr": 0.5,
        "max_momentum": 0.8, "max_decay": 1.0, "steady": True, "surprise": True, "checkpoint_chunks": 2,
        "backend": "auto", "name": "memory",
    }),
    "TitansLMM": (lambda: TitansLMM(8, persistent=2, **MEMORY), {"persistent": 2, "name": "mixer", **MEMORY}),
    "TitansMAC": (
        lambda: TitansMAC(8, persistent=2, segment=4, **MEMORY),
        {"persistent": 2, "segment": 4, "name": "mixer", **MEMORY},
    ),
    "TitansMAG": (lambda: TitansMAG(8, persistent=2, window=3, **MEMORY), {"persistent": 2, "window": 3, **MEMORY}),
    "TitansMAL": (lambda: TitansMAL(8, persistent=2, window=3, **MEMORY), {"persistent": 2, "window": 3, **MEMORY}),
    "TransformerMixer": (lambda: TransformerMixer(8, heads=2, window=3), {"heads": 2, "window": 3, "name": "mixer"}),
}  # fmt: skip
CLASSES = {
    c.__name__: c for c in (LSTMMixer, NeuralMemory, TitansLMM, TitansMAC, TitansMAG, TitansMAL, TransformerMixer)
}


def called(**call):
    return call


def forecaster():
    return PatchForecaster(6, 2, LSTMMixer, patch=2, dim=8)


def tokens():
    return torch.randint(7, (2, 5))


def mixer(name):
    """The calls that all mixers share."""
    make, options = MIXERS[name]

    def run(**call):
        built = make()
        return built, {**call, "state": built.initial_state(2)}

    def stepped():
        built = make()
        return built.step, called(token=torch.randn(2, 8), state=built.initial_state(2))

    return {
        name: lambda: (CLASSES[name], {"dim": 8, **options}),
        f"{name}.initial_state": lambda: (make().initial_state, called(batch=2)),
        f"{name}.forward": lambda: run(x=torch.randn(2, 5, 8), lengths=longs(5, 3)),
        f"{name}.step": stepped,
    }


def of_batch(name):
    return MIXERS[name][0]().memory_state, called(batch=2)


def memory():
    return NeuralMemory(8, **MEMORY)


def readout(kind):
    return {
        kind.__name__: lambda: (kind, called(dim=8, size=2)),
        f"{kind.__name__}.forward": lambda: (kind(8, 2), called(hidden=torch.randn(3, 5, 8))),
        f"{kind.__name__}.affine": lambda: (kind(8, 2).affine, called(hidden=torch.randn(3, 5, 8))),
    }


def state():
    return tokens_model().read(tokens())[1]


PARTS = {
    **{row: call for name in MIXERS for row, call in mixer(name).items()},
    **{f"{n}.memory_state": partial(of_batch, n) for n in MIXERS if n.startswith("Titans")},
    "NeuralMemory.retrieve": lambda: (
        memory().retrieve,
        called(q=torch.randn(2, 5, 8), weights=memory().initial_state(2).weights),
    ),
    **{row: call for kind in (NormalReadout, StudentTReadout, TokenReadout) for row, call in readout(kind).items()},
    "NormalReadout.draw": lambda: (
        NormalReadout.draw,
        called(next_dist=NormalReadout(8, 2)(torch.randn(3, 8)), temperature=0.5),
    ),
    "TokenReadout.draw": lambda: (
        TokenReadout.draw,
        called(next_dist=dist.Categorical(logits=torch.randn(3, 7)), temperature=0.5),
    ),
}
MODELS = {
    "SequenceModel": lambda: (
        SequenceModel,
        called(
            embedding=nn.Embedding(7, 8), mixer=LSTMMixer, readout=TokenReadout(8, 7), dim=8, blocks=1, hidden=6,
            parameters=None, data_size=100, name="model",
        ),
    ),
    "SequenceModel.tokens": lambda: (
        SequenceModel.tokens,
        called(vocabulary=7, mixer=LSTMMixer, dim=8, blocks=1, hidden=6, data_size=100),
    ),
    "SequenceModel.series": lambda: (
        SequenceModel.series,
        called(features=2, mixer=LSTMMixer, dim=8, outputs=3, readout=StudentTReadout, blocks=1, parameters=5000),
    ),
    "SequenceModel.forward": lambda: (
        series_model(),
        called(x=torch.randn(2, 5, 2), mask=torch.ones(2, 5).bool(), targets=torch.randn(2, 5, 2)),
    ),
    "SequenceModel.x_dist": lambda: (tokens_model().x_dist, called(x=tokens())),
    "SequenceModel.hidden": lambda: (tokens_model().hidden, called(x=tokens(), lengths=longs(5, 3))),
    "SequenceModel.read": lambda: (tokens_model().read, called(x=tokens(), state=state(), lengths=longs(5, 3))),
    "SequenceModel.step": lambda: (tokens_model().step, called(x=longs(0, 6), state=state())),
    "SequenceModel.next_dist": lambda: (tokens_model().next_dist, called(x=tokens(), lengths=longs(5, 3))),
    "SequenceModel.generate": lambda: (
        tokens_model().generate,
        called(prompt=tokens(), steps=2, state=state(), lengths=longs(5, 3), temperature=0.5, seed=0),
    ),
    "SequenceModel.load_state": lambda: (tokens_model().load_state, called(tensors=state().to_tensors())),
    "SequenceState": lambda: (SequenceState, called(blocks=state().blocks)),
    "SequenceState.select": lambda: (state().select, called(which=longs(1, 0, 1))),
    "SequenceState.repeat": lambda: (state().repeat, called(times=2)),
    "SequenceState.reset": lambda: (
        state().reset,
        called(which=torch.tensor([True, False]), start=tokens_model().read(tokens()[:1, :0])[1]),
    ),
    "SequenceState.allclose": lambda: (state().allclose, called(other=state(), rtol=1e-5, atol=1e-8)),
    "PatchForecaster": lambda: (
        PatchForecaster,
        called(past=6, horizon=2, mixer=LSTMMixer, patch=2, dim=8, blocks=1, eps=0.01, name="forecaster"),
    ),
    "PatchForecaster.next_dist": lambda: (forecaster().next_dist, called(x=torch.randn(3, 3, 2))),
    "PatchForecaster.forward": lambda: (
        forecaster(),
        called(x=torch.randn(3, 3, 2), mask=None, targets=torch.randn(3, 1, 2)),
    ),
    "DLinear": lambda: (DLinear, called(past=6, horizon=2, kernel=3, name="dlinear")),
    "DLinear.next_dist": lambda: (DLinear(6, 2, kernel=3).next_dist, called(x=torch.randn(3, 3, 2))),
    "DLinear.forward": lambda: (
        DLinear(6, 2, kernel=3),
        called(x=torch.randn(3, 3, 2), mask=None, targets=torch.randn(3, 1, 2)),
    ),
}  # fmt: skip


def sizes():
    return {"shape": ODD, "hidden": (8, 8), "matching_dim": 4, "name": "addressing"}


def addressing():
    return TitansAddressing.mlp(ODD, 8, (8, 8), matching_dim=4, heads=1, chunk_size=2, persistent=2)


def addressing_guide():
    return TitansAddressingGuide.mlp(ODD, (8, 8), matching_dim=4)


def visits():
    return {"x": ink(2, 4, *ODD), "memory": SlotMemory(ink(3, *ODD))}


def of_addressing():
    whole = addressing()
    parts = {n: getattr(whole, n) for n in ("embed", "mixer", "address", "content", "likelihood")}
    return {**parts, "dim": 8, "name": "model"}


ADDRESSING = {
    "TitansAddressing": lambda: (TitansAddressing, of_addressing()),
    "TitansAddressing.mlp": lambda: (
        TitansAddressing.mlp,
        called(**sizes(), dim=8, sequential=True, heads=1, chunk_size=2, persistent=2),
    ),
    "TitansAddressing.a_dist": lambda: (addressing().a_dist, visits()),
    "TitansAddressing.x_dist": lambda: (
        addressing().x_dist,
        called(content=addressing().content(ink(2, 4, *ODD))),
    ),
    "TitansAddressing.x_dist_at": lambda: (
        addressing().x_dist_at,
        called(a=longs(0, 2), memory=visits()["memory"]),
    ),
    "TitansAddressing.forward": lambda: (addressing(), visits()),
    "TitansAddressing.log_evidence": lambda: (addressing().log_evidence, visits()),
    "TitansAddressingGuide": lambda: (
        TitansAddressingGuide,
        called(address=addressing_guide().address, name="guide"),
    ),
    "TitansAddressingGuide.mlp": lambda: (TitansAddressingGuide.mlp, sizes()),
    "TitansAddressingGuide.a_dist": lambda: (addressing_guide().a_dist, visits()),
    "TitansAddressingGuide.forward": lambda: (addressing_guide(), visits()),
}
ROWS = PARTS | MODELS | ADDRESSING
