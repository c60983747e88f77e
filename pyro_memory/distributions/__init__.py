"""Distributions over the slots of a memory, and what is observed through one.

Where is the thing that ... is a categorical over a million slots without a score for each (``StreamedCategorical``);
puts its mass on a few (``NearestCategorical``); lies over slots of several processes (``ShardedCategorical``); is a
likelihood that depends on an address alone, of pixels (``AddressedBernoulli``), counts (``AddressedPoisson``,
``AddressedMultinomial``) or classes (``AddressedCategorical``); noises an image and takes the noise away
(``CosineSchedule``, ``NoisingPath``, ``DenoisingPath``); is an image given pixel by pixel (``AutoregressiveImage``)?
They know no memory and no network. Imports: ``kernels``.
"""

from pyro_memory.distributions.addressed import (
    AddressedBernoulli,
    AddressedCategorical,
    AddressedMultinomial,
    AddressedPoisson,
)
from pyro_memory.distributions.autoregressive import AutoregressiveImage
from pyro_memory.distributions.denoising import CosineSchedule, DenoisingPath, NoisingPath, spread
from pyro_memory.distributions.nearest import NearestCategorical
from pyro_memory.distributions.normal_gamma import NormalGamma as NormalGamma  # for stores and recall, not in __all__
from pyro_memory.distributions.sharded import Copied, Division, Group, ShardedCategorical, Summed, all_of
from pyro_memory.distributions.streamed import STREAM_ABOVE, StreamedCategorical, log_prior_row
from pyro_memory.distributions.student_t import expected_log_prob

__all__ = [
    "STREAM_ABOVE",
    "AddressedBernoulli",
    "AddressedCategorical",
    "AddressedMultinomial",
    "AddressedPoisson",
    "AutoregressiveImage",
    "Copied",
    "CosineSchedule",
    "DenoisingPath",
    "Division",
    "Group",
    "NearestCategorical",
    "NoisingPath",
    "ShardedCategorical",
    "StreamedCategorical",
    "Summed",
    "all_of",
    "expected_log_prob",
    "log_prior_row",
    "spread",
]
