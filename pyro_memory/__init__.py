"""Memory for Pyro models, trained by SVI and measured in nats."""

from pathlib import Path

__version__ = "0.1.0"

if not (Path(__file__).parent / "models").is_dir():
    # A checkout keeps models, guides and kernels beside this folder; an installed wheel has them inside it.
    __path__.append(str(Path(__file__).parent.parent))

from pyro_memory.addressed import AddressedBernoulli
from pyro_memory.addressing import (
    ContentAddress,
    Cosine,
    Dot,
    FrozenAddress,
    LearnedPrior,
    NormalizedKey,
    UniformPrior,
)
from pyro_memory.checkpoints import load_weights
from pyro_memory.completion import complete
from pyro_memory.concepts import ConceptMemory
from pyro_memory.consolidation import Consolidation, consolidate, exact_posterior, replay
from pyro_memory.context import Context
from pyro_memory.episodes import EpisodicMemory
from pyro_memory.evidence import importance_bound, memory_contribution
from pyro_memory.export import to_arviz
from pyro_memory.indexes import SlotIndex
from pyro_memory.information import information_gain, token_surprise
from pyro_memory.lifetime import Lifetime, remember
from pyro_memory.mapped import MappedMemory
from pyro_memory.nearest import NearestAddress, NearestCategorical
from pyro_memory.objectives import VIMCO, LeaveOneOutELBO
from pyro_memory.rao_blackwell import RaoBlackwellELBO
from pyro_memory.recall import Recall
from pyro_memory.recognition import Recognition
from pyro_memory.results import (
    AddressInformation,
    BoundEstimate,
    InformationGain,
    MemoryContribution,
    SiteInformation,
    TokenSurprise,
)
from pyro_memory.schedules import warm_cosine
from pyro_memory.sharded import ShardedMemory
from pyro_memory.slots import SlotMemory
from pyro_memory.streamed import StreamedCategorical
from pyro_memory.structured import StructuredMemory
from pyro_memory.templates import TemplateMemory
from pyro_memory.training import FitResult, fit
from pyro_memory.zoo import Card, load_memory, load_pretrained, pretrained, save_pretrained

__all__ = [
    "VIMCO",
    "AddressInformation",
    "AddressedBernoulli",
    "BoundEstimate",
    "Card",
    "ConceptMemory",
    "Consolidation",
    "ContentAddress",
    "Context",
    "Cosine",
    "Dot",
    "EpisodicMemory",
    "FitResult",
    "FrozenAddress",
    "InformationGain",
    "LearnedPrior",
    "LeaveOneOutELBO",
    "Lifetime",
    "MappedMemory",
    "MemoryContribution",
    "NearestAddress",
    "NearestCategorical",
    "NormalizedKey",
    "RaoBlackwellELBO",
    "Recall",
    "Recognition",
    "ShardedMemory",
    "SiteInformation",
    "SlotIndex",
    "SlotMemory",
    "StreamedCategorical",
    "StructuredMemory",
    "TemplateMemory",
    "TokenSurprise",
    "UniformPrior",
    "complete",
    "consolidate",
    "exact_posterior",
    "fit",
    "importance_bound",
    "information_gain",
    "load_memory",
    "load_pretrained",
    "load_weights",
    "memory_contribution",
    "pretrained",
    "remember",
    "replay",
    "save_pretrained",
    "to_arviz",
    "token_surprise",
    "warm_cosine",
]
