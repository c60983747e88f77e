"""Images, text and series, and the tasks drawn from them."""

from pyro_memory.data.digit_pairs import digit_pairs
from pyro_memory.data.digits import mnist
from pyro_memory.data.glyphs import glyphs
from pyro_memory.data.images import LabelledImages
from pyro_memory.data.named import LICENCES, NAMES, load_images
from pyro_memory.data.needle import CHARACTERS, NeedleTasks
from pyro_memory.data.omniglot import omniglot
from pyro_memory.data.recall import RecallTasks
from pyro_memory.data.series import SERIES, Series, SeriesWindows, load_series
from pyro_memory.data.sets import SetTasks
from pyro_memory.data.stream import ClassStream
from pyro_memory.data.tasks import FewShotTasks
from pyro_memory.data.text import CharacterText, TextBatches, load_text

__all__ = [
    "CHARACTERS",
    "LICENCES",
    "NAMES",
    "SERIES",
    "CharacterText",
    "ClassStream",
    "FewShotTasks",
    "LabelledImages",
    "NeedleTasks",
    "RecallTasks",
    "Series",
    "SeriesWindows",
    "SetTasks",
    "TextBatches",
    "digit_pairs",
    "glyphs",
    "load_images",
    "load_series",
    "load_text",
    "mnist",
    "omniglot",
]
