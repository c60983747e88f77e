"""Contracts: what a class must keep to work with the rest of the package, checked on an instance of it.

Where is the thing that ... checks a model and its guide (``check_pair``), a base generative model and its guide
(``check_base``), a sequence mixer (``check_mixer``), a memory (``check_store``)? Each works on copies, leaves flags,
modes and random streams as they were, and raises an AssertionError that says what is wrong and what to do. Call them
from any test runner, or from a script. Imports: ``diagnostics``, ``inference``, ``training``, ``nets``.
"""

from pyro_memory.testing.bases import check_base
from pyro_memory.testing.mixers import check_mixer
from pyro_memory.testing.pairs import check_pair
from pyro_memory.testing.stores import check_store

__all__ = ["check_base", "check_mixer", "check_pair", "check_store"]
