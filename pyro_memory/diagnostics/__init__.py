"""Measurements in nats: an estimator, its record and its figure in one file.

Where is the thing that ... bounds log p(x) (``importance_bound``); says what each latent and each lookup carried
(``information_gain``), what a lookup found (``posterior_address``), what latents cost and what they explain
(``rate_distortion``), what the memory was worth (``memory_contribution``), how surprising each token was
(``token_surprise``); how good generated images are (``frechet_distance``, ``class_agreement``, by ``train_classifier``)
and how varied (``sample_diversity``); hands ArviZ a record (``to_arviz``) or a guide's draws (``posterior_to_arviz``);
draws images, concepts, usage, levels, pairs side by side (``plot_images``, ``plot_concepts``, ``plot_usage``,
``plot_levels``, ``plot_text``, ``plot_rate_distortion``); prints and displays a record (``Record``)? Each tells
standard errors, and has ``to_dict()`` and ``plot(ax)``. Imports: ``inference``, ``stores``, ``distributions``,
``nets``, ``data``.
"""

from pyro_memory.diagnostics.addresses import AddressInformation
from pyro_memory.diagnostics.arviz import to_arviz
from pyro_memory.diagnostics.axes import BLUE, GREY, ORANGE, Axes, axes_or_new, plot_images, plot_levels, plot_usage
from pyro_memory.diagnostics.bound import BoundEstimate, importance_bound
from pyro_memory.diagnostics.calibration import Calibration, calibrate
from pyro_memory.diagnostics.concepts import plot_concepts
from pyro_memory.diagnostics.continuous import LatentInformation
from pyro_memory.diagnostics.contribution import MemoryContribution, memory_contribution
from pyro_memory.diagnostics.diversity import SampleDiversity, sample_diversity
from pyro_memory.diagnostics.information import InformationGain, information_gain
from pyro_memory.diagnostics.lookups import PosteriorAddress, posterior_address
from pyro_memory.diagnostics.posterior import posterior_to_arviz
from pyro_memory.diagnostics.rate import RateDistortion, plot_rate_distortion, rate_distortion
from pyro_memory.diagnostics.reliability import Reliability
from pyro_memory.diagnostics.samples import (
    ClassAgreement,
    FeatureClassifier,
    FrechetDistance,
    class_agreement,
    frechet_distance,
    prototype_sets,
    train_classifier,
)
from pyro_memory.diagnostics.sites import SiteInformation
from pyro_memory.diagnostics.surprise import TokenSurprise, plot_text, token_surprise
from pyro_memory.diagnostics.tables import Record, Rows, standard_error
from pyro_memory.diagnostics.uniformity import SiteCalibration

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "AddressInformation",
    "Axes",
    "BoundEstimate",
    "Calibration",
    "ClassAgreement",
    "FeatureClassifier",
    "FrechetDistance",
    "InformationGain",
    "LatentInformation",
    "MemoryContribution",
    "PosteriorAddress",
    "RateDistortion",
    "Record",
    "Reliability",
    "Rows",
    "SampleDiversity",
    "SiteCalibration",
    "SiteInformation",
    "TokenSurprise",
    "axes_or_new",
    "calibrate",
    "class_agreement",
    "frechet_distance",
    "importance_bound",
    "information_gain",
    "memory_contribution",
    "plot_concepts",
    "plot_images",
    "plot_levels",
    "plot_rate_distortion",
    "plot_text",
    "plot_usage",
    "posterior_address",
    "posterior_to_arviz",
    "prototype_sets",
    "rate_distortion",
    "sample_diversity",
    "standard_error",
    "to_arviz",
    "token_surprise",
    "train_classifier",
]
