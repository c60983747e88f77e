"""Building a pair again from what a file tells of it.

Where is the thing that ... tells how a pair was built, by the records that constructors left (``describing``), makes
it of that (``make``), gives it names that are free (``apart``), finds out whether it was changed since
(``recorded_build``), says why no file can tell (``NotRebuildable``), knows which names a file may hold (``names``) and
which classes are a user's (``own_classes``)? Imports: nothing but the gate.
"""

from pyro_memory.building.comparing import recorded_build
from pyro_memory.building.describing import Description
from pyro_memory.building.making import apart, make
from pyro_memory.building.names import NotRebuildable, own_classes

__all__ = ["Description", "NotRebuildable", "apart", "make", "own_classes", "recorded_build"]
