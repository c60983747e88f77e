"""The gate: what users hand in is looked at once, by the annotations of the public function that they call.

Where is the thing that ... puts the gate before a public function or class (``checked``); says what a value is in an
error's text (``told``); makes tensors of arrays and frames (``as_tensor``); refuses numbers that are too small, shapes
and addresses that do not fit (``check_least``, ``check_image_shape``, ``check_places``); keeps how modules were built
(``recording``, for classes of a user's ``rebuildable``)? An argument annotated with a
tensor's kind and shape, a number, a sequence, a class of this package, a path is converted where nothing is lost, or
refused by a text that names it: a TypeError for another type, a ValueError for another shape, dtype, device or value.
Ranges of numbers, and what arguments mean together, are for the function itself. Imports: nothing of this package.
"""

from pyro_memory.gate.border import checked
from pyro_memory.gate.ranges import check_image_shape, check_least, check_places
from pyro_memory.gate.recording import CLASSES, NAMES, Held, Parts, Unknown, construction, is_recorded, rebuildable
from pyro_memory.gate.tensors import as_tensor
from pyro_memory.gate.texts import told

__all__ = [
    "CLASSES",
    "NAMES",
    "Held",
    "Parts",
    "Unknown",
    "as_tensor",
    "check_image_shape",
    "check_least",
    "check_places",
    "checked",
    "construction",
    "is_recorded",
    "rebuildable",
    "told",
]
