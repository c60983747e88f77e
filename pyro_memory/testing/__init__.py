"""Contracts: what a class must keep to work with the rest of the package, checked on an instance of it.

random streams as they were, and raises an AssertionError that says what is wrong and what to do. Nothing but the
package's own dependencies is needed: call them from any test runner, or from a script.
"""

from pyro_memory.testing.pairs import check_pair

__all__ = ["check_pair"]
