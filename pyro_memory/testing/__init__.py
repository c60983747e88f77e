"""Contracts: what a class must keep to work with the rest of the package, checked on an instance of it.

random streams as they were, and raises an AssertionError that says what is wrong and what to do. Nothing but the
package's own dependencies is needed: call them from any test runner, or from a script.
"""

from pyro_memory.testing.bases import check_base
from pyro_memory.testing.mixers import check_mixer
from pyro_memory.testing.pairs import check_pair
from pyro_memory.testing.stores import check_store

__all__ = ["check_base", "check_mixer", "check_pair", "check_store"]
