"""Networks: from images to features, from codes to images; those that end a conditional return a distribution.

Where is the thing that ... sees an image (``ImagePyramid``, ``ImageMLP``); embeds it to be looked up (``Embedding``);
draws it from a code and what was read (``ConvDecoder``, ``MLPDecoder``); ends in a distribution (``GaussianHead``,
``PairEncoder``, ``ContentPrior``, ``BernoulliImage``, ``GaussianImage``); adds what was read (``SkipPyramid``); chains
layers and draws their first weights (``mlp``, ``Linear``, ``scale_for_relu``); lays a datum beside what was read
(``broadcast_cat``); leaves mixed precision (``out_of_autocast``); keeps Pyro out where it is not at work (``plain``);
runs a module in evaluation mode and gives modes back (``evaluating``, ``modes_kept``); says what a memory told a base
model (``Context``)? Features are tuples of tensors, finest first, coarsest last: a pyramid
has several, an MLP one, a model without memory none. Any number of batch dimensions may stand to the left. Imports:
nothing of this package.
"""

from pyro_memory.nets.context import Context, Pages, with_code
from pyro_memory.nets.decoders import ConvDecoder, MLPDecoder
from pyro_memory.nets.heads import BernoulliImage, ContentPrior, GaussianHead, GaussianImage, GaussianMLP, PairEncoder
from pyro_memory.nets.layers import Features, Linear, broadcast_cat, mlp, out_of_autocast, scale_for_relu
from pyro_memory.nets.modes import evaluating, modes_kept
from pyro_memory.nets.plain import PlainLinear as PlainLinear  # for models, not in __all__
from pyro_memory.nets.plain import PlainModule as PlainModule
from pyro_memory.nets.pyramids import Embedding, ImageMLP, ImagePyramid, SkipPyramid

__all__ = [
    "BernoulliImage",
    "ContentPrior",
    "Context",
    "ConvDecoder",
    "Embedding",
    "Features",
    "GaussianHead",
    "GaussianImage",
    "GaussianMLP",
    "ImageMLP",
    "ImagePyramid",
    "Linear",
    "MLPDecoder",
    "Pages",
    "PairEncoder",
    "SkipPyramid",
    "broadcast_cat",
    "evaluating",
    "mlp",
    "modes_kept",
    "out_of_autocast",
    "scale_for_relu",
    "with_code",
]
