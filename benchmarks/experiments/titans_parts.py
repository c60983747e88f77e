"""What the experiments on Titans share: the mixers that they compare, and how a trained model is left as weights."""

from functools import partial

from torch import nn

from pyro_memory import save_pretrained
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import LSTMMixer, TitansLMM, TitansMAC, TitansMAG, TitansMAL, TransformerMixer

MIXERS = ("LMM", "MAC", "MAG", "MAL", "transformer", "LSTM")


def mixers(heads, chunk, window, **options):
    """By name what makes a mixer; attention sees ``window`` tokens, a memory's gradient is shared by ``chunk``.

    ``options`` are the memory's.
    """
    memory = {"heads": heads, "chunk_size": chunk, **options}
    return {
        "LMM": partial(TitansLMM, **memory),
        "MAC": partial(TitansMAC, segment=window, **memory),
        "MAG": partial(TitansMAG, window=window, **memory),
        "MAL": partial(TitansMAL, window=window, **memory),
        "transformer": partial(TransformerMixer, heads=heads, window=window),
        "LSTM": partial(LSTMMixer),
    }


# What sceptics of learning at test time ask (Test-Time Training with KV Binding Is Secretly Linear Attention, 2026,
# https://arxiv.org/abs/2602.21204): does the memory need its gradient, its layers, its rates?


def descent_turned(make, dim):
    """A mixer whose memory climbs its loss: theta is negative."""
    mixer = make(dim)
    mixer.memory.max_lr *= -1
    return mixer


def last_layer_only(make, dim):
    """A mixer whose memory learns in its last layer alone: theta is zero in the others."""
    mixer = make(dim)
    plain = mixer.memory._gates

    def gates(x):
        theta, *others = plain(x)
        return [(*(0 * t for t in theta[:-1]), theta[-1]), *others]

    mixer.memory._gates = gates
    return mixer


def constant_rates(make, dim):
    """A mixer whose memory has the same learned theta, eta and alpha for every token."""
    mixer = make(dim)
    for linear in (mixer.memory.to_lr, mixer.memory.to_momentum, mixer.memory.to_decay):
        if linear is not None:
            nn.init.zeros_(linear.weight).requires_grad_(False)
    return mixer


def fast_decay(make, dim):
    """A mixer whose memory forgets, at first half in 620 tokens, not in 33,000 (of chunks of 16)."""
    mixer = make(dim, weight_decay=True)
    nn.init.constant_(mixer.memory.to_decay.bias, -4.0)
    return mixer


def leave_weights(name, model, constructor, sizes, mixer, facts, folder):
    """Writes weights in half precision with a card, ready for ``load_pretrained``."""
    made = {"partial": [mixer.func.__name__, mixer.keywords]}
    build = {"model": [f"SequenceModel.{constructor}", sizes | {"mixer": made}], "guide": ["EmptyGuide", {}]}
    print(f"\n{save_pretrained(name, model, EmptyGuide(), build=build, facts=facts, folder=folder)}")
