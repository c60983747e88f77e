"""Modules that map data and a memory to a distribution over its slots.

Where is the thing that ... looks a datum up by its content (``ContentAddress``), with keys embedded beforehand
(``FrozenAddress``), among the few nearest slots only (``NearestAddress``), found by an index (``SlotIndex``);
by what cached memories answer (``RecallAddress``);
compares a key with a query (``NormalizedKey``, ``Cosine``, ``Dot``); says what an address is before anything was
looked up (``UniformPrior``, ``LearnedPrior``)? Imports: ``stores``, ``distributions``,
``nets``, ``kernels``.
"""

from pyro_memory.addressing.content import ContentAddress
from pyro_memory.addressing.frozen import FrozenAddress
from pyro_memory.addressing.index import SlotIndex
from pyro_memory.addressing.nearest import NearestAddress
from pyro_memory.addressing.priors import LearnedPrior, UniformPrior
from pyro_memory.addressing.recall import RecallAddress
from pyro_memory.addressing.similarity import Cosine, Dot, NormalizedKey

__all__ = [
    "ContentAddress",
    "Cosine",
    "Dot",
    "FrozenAddress",
    "LearnedPrior",
    "NearestAddress",
    "NormalizedKey",
    "RecallAddress",
    "SlotIndex",
    "UniformPrior",
]
