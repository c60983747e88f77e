"""Memory for Pyro models, trained by SVI and measured in nats.

The rooms, from the top down; the door of each says what lives there: ``testing`` (contracts for classes of your own),
``zoo`` (trained weights), ``models`` and ``guides``, ``training`` (``fit``), ``recall`` (sets, episodes, concepts),
``diagnostics`` (bounds, information gain), ``inference`` (objectives), ``addressing``, ``data``, ``checks`` (what
arguments must be), ``stores`` (memories), ``distributions``, ``nets``, ``kernels`` (accelerated functions),
``naming``, ``building`` (a pair again from its file), ``gate`` (what stands before every public function).
"""

from pathlib import Path

__version__ = "0.1.0"

if not (Path(__file__).parent / "models").is_dir():
    # A checkout keeps models, guides and kernels beside this folder; an installed wheel has them inside it.
    __path__.append(str(Path(__file__).parent.parent))

from pyro_memory.addressing import (
    ContentAddress,
    Cosine,
    Dot,
    FrozenAddress,
    LearnedPrior,
    NearestAddress,
    NormalizedKey,
    RecallAddress,
    SlotIndex,
    UniformPrior,
)
from pyro_memory.diagnostics import (
    AddressInformation,
    BoundEstimate,
    Calibration,
    InformationGain,
    LatentInformation,
    MemoryContribution,
    PosteriorAddress,
    RateDistortion,
    SiteInformation,
    TokenSurprise,
    calibrate,
    importance_bound,
    information_gain,
    memory_contribution,
    posterior_address,
    posterior_to_arviz,
    rate_distortion,
    to_arviz,
    token_surprise,
)
from pyro_memory.distributions import (
    AddressedBernoulli,
    AddressedCategorical,
    AddressedMultinomial,
    AddressedPoisson,
    NearestCategorical,
    StreamedCategorical,
)
from pyro_memory.gate import rebuildable
from pyro_memory.inference import VIMCO, DReG, LeaveOneOutELBO, RaoBlackwellELBO, WakeWake, complete
from pyro_memory.nets import Context, broadcast_cat
from pyro_memory.recall import (
    Consolidation,
    Lifetime,
    Recall,
    Recognition,
    consolidate,
    exact_posterior,
    remember,
    replay,
)
from pyro_memory.stores import (
    ConceptMemory,
    EpisodicMemory,
    MappedMemory,
    ShardedMemory,
    SlotMemory,
    StructuredMemory,
    TemplateMemory,
)
from pyro_memory.training import FitResult, fit, load_weights, save, warm_cosine
from pyro_memory.zoo import Card, load, load_memory, load_pretrained, pretrained, save_pretrained

__all__ = [
    "VIMCO",
    "AddressInformation",
    "AddressedBernoulli",
    "AddressedCategorical",
    "AddressedMultinomial",
    "AddressedPoisson",
    "BoundEstimate",
    "Calibration",
    "Card",
    "ConceptMemory",
    "Consolidation",
    "ContentAddress",
    "Context",
    "Cosine",
    "DReG",
    "Dot",
    "EpisodicMemory",
    "FitResult",
    "FrozenAddress",
    "InformationGain",
    "LatentInformation",
    "LearnedPrior",
    "LeaveOneOutELBO",
    "Lifetime",
    "MappedMemory",
    "MemoryContribution",
    "NearestAddress",
    "NearestCategorical",
    "NormalizedKey",
    "PosteriorAddress",
    "RaoBlackwellELBO",
    "RateDistortion",
    "Recall",
    "RecallAddress",
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
    "WakeWake",
    "broadcast_cat",
    "calibrate",
    "complete",
    "consolidate",
    "exact_posterior",
    "fit",
    "importance_bound",
    "information_gain",
    "load",
    "load_memory",
    "load_pretrained",
    "load_weights",
    "memory_contribution",
    "posterior_address",
    "posterior_to_arviz",
    "pretrained",
    "rate_distortion",
    "rebuildable",
    "remember",
    "replay",
    "save",
    "save_pretrained",
    "to_arviz",
    "token_surprise",
    "warm_cosine",
]
