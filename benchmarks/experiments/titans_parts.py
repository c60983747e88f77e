"""What the experiments on Titans share: the mixers that they compare, and how a trained model is left as weights."""

from functools import partial

from pyro_memory import save_pretrained
from pyro_memory.guides import EmptyGuide
from pyro_memory.models import LSTMMixer, TitansLMM, TitansMAC, TitansMAG, TitansMAL, TransformerMixer

MIXERS = ("LMM", "MAC", "MAG", "MAL", "transformer", "LSTM")


def mixers(heads, chunk, window):
    """By name what makes a mixer; attention sees ``window`` tokens, a memory's gradient is shared by ``chunk``."""
    memory = {"heads": heads, "chunk_size": chunk}
    return {
        "LMM": partial(TitansLMM, **memory),
        "MAC": partial(TitansMAC, segment=window, **memory),
        "MAG": partial(TitansMAG, window=window, **memory),
        "MAL": partial(TitansMAL, window=window, **memory),
        "transformer": partial(TransformerMixer, heads=heads, window=window),
        "LSTM": partial(LSTMMixer),
    }


def leave_weights(name, model, constructor, sizes, mixer, facts, folder):
    """Writes weights in half precision with a card, ready for ``load_pretrained``."""
    made = {"partial": [mixer.func.__name__, mixer.keywords]}
    build = {"model": [f"SequenceModel.{constructor}", sizes | {"mixer": made}], "guide": ["EmptyGuide", {}]}
    print(f"\n{save_pretrained(name, model, EmptyGuide(), build=build, facts=facts, folder=folder)}")
