"""Memories: values that hold something; writing gives a new one, reading changes nothing.

Where is the thing that ... holds items in slots, written round a ring or as a reservoir (``SlotMemory``), with
contents that are learned (``TemplateMemory``), in files larger than RAM (``MappedMemory``), over several processes
(``ShardedMemory``); holds episodes with their images (``EpisodicMemory``), concepts with their doubt
(``ConceptMemory``) and a few of their images (``Exemplars``), both (``StructuredMemory``); writes a file whole or not
at all (``replace_file``), or tries whether one could (``probe_file``)? Imports: ``distributions``.
"""

from pyro_memory.stores.concepts import ConceptMemory
from pyro_memory.stores.episodes import EpisodicMemory
from pyro_memory.stores.exemplars import Exemplars
from pyro_memory.stores.files import probe_file, replace_file
from pyro_memory.stores.mapped import MappedMemory
from pyro_memory.stores.sharded import ShardedMemory
from pyro_memory.stores.slots import SlotMemory
from pyro_memory.stores.structured import StructuredMemory
from pyro_memory.stores.templates import TemplateMemory
from pyro_memory.stores.tensors import readable

__all__ = [
    "ConceptMemory",
    "EpisodicMemory",
    "Exemplars",
    "MappedMemory",
    "ShardedMemory",
    "SlotMemory",
    "StructuredMemory",
    "TemplateMemory",
    "probe_file",
    "readable",
    "replace_file",
]
