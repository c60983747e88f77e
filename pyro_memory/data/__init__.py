"""Images and the few-shot tasks drawn from them."""

from pyro_memory.data.digits import mnist
from pyro_memory.data.glyphs import glyphs
from pyro_memory.data.images import LabelledImages
from pyro_memory.data.named import NAMES, load_images
from pyro_memory.data.omniglot import omniglot
from pyro_memory.data.tasks import FewShotTasks

__all__ = ["NAMES", "FewShotTasks", "LabelledImages", "glyphs", "load_images", "mnist", "omniglot"]
