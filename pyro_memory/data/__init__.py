"""Images, text and series, and the tasks drawn from them.

Where is the thing that ... reads data of your own (``image_folder``, ``series_csv``, ``text_files``) or takes it from
memory (``LabelledImages``, ``Series``, ``CharacterText``); loads images by name (``load_images``; ``glyphs`` needs no
file, ``omniglot``, ``mnist``, ``digit_pairs``), text (``load_text``, ``TextBatches``) or series (``load_series``);
draws a target and the memory to look it up in (``FewShotTasks``), sets of one class (``SetTasks``), a stream of them
(``ClassStream``, ``ReturningClasses``), pairs to recall (``RecallTasks``), a needle in text (``NeedleTasks``), windows
to forecast from (``SeriesWindows``)? A task is indexed: ``tasks[i]`` gives the arguments of model and guide, the same
for the same seed. Imports: ``stores``.
"""

from pyro_memory.data.images.digits import mnist
from pyro_memory.data.images.drawings import omniglot
from pyro_memory.data.images.folder import image_folder
from pyro_memory.data.images.labelled import LabelledImages
from pyro_memory.data.images.letters import glyphs
from pyro_memory.data.images.named import LICENCES, NAMES, load_images
from pyro_memory.data.images.pairs import digit_pairs
from pyro_memory.data.sequences.named import SERIES, load_series
from pyro_memory.data.sequences.series import Series, SeriesWindows
from pyro_memory.data.sequences.tables import series_csv
from pyro_memory.data.sequences.text import CharacterText, TextBatches, load_text, text_files
from pyro_memory.data.tasks.few_shot import FewShotTasks
from pyro_memory.data.tasks.needle import CHARACTERS, NeedleTasks
from pyro_memory.data.tasks.recall import RecallTasks
from pyro_memory.data.tasks.returning import ReturningClasses
from pyro_memory.data.tasks.sets import SetTasks
from pyro_memory.data.tasks.stream import ClassStream

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
    "ReturningClasses",
    "Series",
    "SeriesWindows",
    "SetTasks",
    "TextBatches",
    "digit_pairs",
    "glyphs",
    "image_folder",
    "load_images",
    "load_series",
    "load_text",
    "mnist",
    "omniglot",
    "series_csv",
    "text_files",
]
