"""Objectives and the weights that they are made of.

Where is the thing that ... trains a pair with discrete addresses (``VIMCO``, ``DReG``, ``LeaveOneOutELBO``,
``RaoBlackwellELBO``, ``WakeWake``); makes an objective of what a datum's bound is (``Objective``); gives each datum its
importance weights (``weigh``); runs model and guide for all particles at once (``Particles``); keeps frozen parameters
frozen (``KeepFrozen``), the passes of a program at the same data (``SameData``), and its particles at one draw of what
all data share (``OneDraw``); gives the posterior of what is enumerated (``posterior_of``); looks at a pair before its
first step (``first_pass``), and says what Pyro says of sites in words of the model (``told_by_site``); fills in what a
datum lacks (``complete``)? Imports: ``distributions``.
"""

from pyro_memory.inference.completion import complete
from pyro_memory.inference.dreg import DReG
from pyro_memory.inference.enumerated import posterior_of
from pyro_memory.inference.leave_one_out import LeaveOneOutELBO
from pyro_memory.inference.objective import Objective
from pyro_memory.inference.pairing import PARTICLES, check_given, check_sites, stochastic_sites
from pyro_memory.inference.particles import KeepFrozen, OneDraw, Particles, SameData
from pyro_memory.inference.rao_blackwell import RaoBlackwellELBO
from pyro_memory.inference.trial import check_call, check_nesting, first_pass, told_by_site
from pyro_memory.inference.vimco import VIMCO, leave_one_out_bound
from pyro_memory.inference.wake_wake import WakeWake
from pyro_memory.inference.weights import Weights, check_same_globals, weigh

__all__ = [
    "PARTICLES",
    "VIMCO",
    "DReG",
    "KeepFrozen",
    "LeaveOneOutELBO",
    "Objective",
    "OneDraw",
    "Particles",
    "RaoBlackwellELBO",
    "SameData",
    "WakeWake",
    "Weights",
    "check_call",
    "check_given",
    "check_nesting",
    "check_same_globals",
    "check_sites",
    "complete",
    "first_pass",
    "leave_one_out_bound",
    "posterior_of",
    "stochastic_sites",
    "told_by_site",
    "weigh",
]
