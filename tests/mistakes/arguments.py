"""Mistakes in what is handed to models, guides, mixers, addresses and tasks."""

import numpy as np
import torch
from conftest import ink
from mistakes.table import Mistakes

from pyro_memory import (
    VIMCO,
    ContentAddress,
    NearestAddress,
    Recall,
    SlotMemory,
    TemplateMemory,
    UniformPrior,
    fit,
    importance_bound,
    information_gain,
)
from pyro_memory.data import FewShotTasks, LabelledImages, glyphs
from pyro_memory.guides import VAEBaseGuide, VAEGuide, VMAGuide, VSMGuide
from pyro_memory.kernels import decay_scan, fused_address, neural_memory
from pyro_memory.models import (
    VAE,
    VMA,
    VSM,
    LSTMMixer,
    NeuralMemory,
    SequenceModel,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TransformerMixer,
    VAEBase,
)
from pyro_memory.nets import Embedding, ImageMLP

SHAPE = (1, 6, 6)
SIZES = {"latent_dim": 2, "hidden": (8, 8)}
X, ITEMS = ink(2, *SHAPE), ink(3, *SHAPE)
mistakes = Mistakes()


def vma(**options):
    return VMA.mlp(SHAPE, **SIZES, **options), VMAGuide.mlp(SHAPE, **SIZES, matching_dim=4, **options)


def bound(*args, pair=vma, **options):
    return importance_bound(*(pair() if callable(pair) else pair), *args, **{"particles": 2} | options)


def vae():
    return VAE.mlp(SHAPE, **SIZES), VAEGuide.mlp(SHAPE, **SIZES)


# --- memories


@mistakes.told(r"`memory`.*SlotMemory")
def a_tensor_for_a_memory():
    bound(X, ITEMS)


@mistakes.told(r"`memory`.*SlotMemory")
def a_numpy_array_for_a_memory():
    vma()[0](X, ITEMS.numpy())


@mistakes.told(r"`memory`.*SlotMemory")
def a_tensor_for_the_memory_of_a_guide():
    vma()[1](X, ITEMS)


@mistakes.told(r"`memory`.*SlotMemory")
def a_tensor_for_the_memory_of_an_address():
    ContentAddress(Embedding(ImageMLP(SHAPE, (8,)), 3))(X, ITEMS)


@mistakes.told(r"`memory`.*SlotMemory")
def a_tensor_for_the_memory_of_a_prior():
    UniformPrior()(ITEMS)


@mistakes.told(r"`memory`.*SlotMemory")
def a_tensor_for_the_memory_to_generate_from():
    vma()[0].generate(ITEMS)


@mistakes.told(r"`memory`.*`templates`")
def a_forgotten_memory():
    bound(X)


@mistakes.told(r"`memory`.*(none|filled|hold)")
def an_empty_memory_without_a_none_slot():
    bound(X, SlotMemory.empty(SHAPE))


@mistakes.told(r"`x`|`memory`")
def memory_and_images_swapped():
    bound(SlotMemory(ITEMS), X)


@mistakes.told(r"`nearest`.*3")
def more_nearest_slots_than_there_are():
    NearestAddress(ContentAddress(Embedding(ImageMLP(SHAPE, (8,)), 3)), 4)(X, SlotMemory(ITEMS))


@mistakes.told(r"`templates`.*TemplateMemory")
def a_tensor_for_templates():
    VMA.mlp(SHAPE, **SIZES, templates=ITEMS)(X)


def vsm():
    recall = Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8)
    sizes = {"latent_dim": 2, "code_dim": 4, "channels": (4, 5)}
    return VSM(VAEBase(SHAPE, **sizes), recall), VSMGuide(VAEBaseGuide(SHAPE, **sizes), recall)


@mistakes.told(r"`support`.*SlotMemory")
def a_tensor_for_a_support():
    vsm()[0](ink(2, 1, *SHAPE), ink(2, 3, *SHAPE), SlotMemory(ITEMS))


@mistakes.told(r"`memory`.*StructuredMemory")
def slots_for_a_structured_memory():
    support = SlotMemory(ink(2, 3, *SHAPE), batch_dim=-2)
    vsm()[0](ink(2, 1, *SHAPE), support, SlotMemory(ITEMS))


@mistakes.told(r"`base`")
def a_network_for_a_base_model():
    VSM(ImageMLP(SHAPE), Recall(SHAPE, dim=3, code_dim=4, channels=(4, 5), hidden=8))


# --- images


@mistakes.told(r"`x` must lie in \[0, 1\].*255")
def grey_levels_up_to_255():
    bound(255 * X, pair=vae)


@mistakes.told(r"`x`.*(float|convert)")
def images_of_bytes():
    bound(X.to(torch.uint8), pair=vae)


@mistakes.told(r"`x`.*(float32|dtype)")
def images_of_double_precision():
    bound(X.double(), pair=vae)


@mistakes.told(r"`x`.*(bfloat16|dtype)")
def images_of_half_precision():
    bound(X.bfloat16(), pair=vae)


@mistakes.told(r"`x`.*device")
def images_on_another_device():
    bound(X.to("meta"), pair=vae)


@mistakes.told(r"`x`.*finite")
def images_with_nan():
    bound(X.clone().fill_(torch.nan), pair=vae)


@mistakes.told(r"`x`.*(\[batch, channel, height, width\]|dimension)")
def one_image_without_a_batch():
    bound(X[0], pair=vae)


@mistakes.told(r"`x`")
def no_images():
    bound(None, pair=vae)


@mistakes.told(r"`labels`")
def labels_that_are_fractions():
    LabelledImages((255 * ink(4, *SHAPE)).byte(), torch.tensor([0.5, 0, 1, 1]), ("a", "b"), levels=255)


@mistakes.told(r"`images`.*(\[0, 1\]|`levels`|byte|integer)")
def images_of_255_levels_in_a_binary_set():
    LabelledImages((255 * torch.ones(4, *SHAPE)).byte(), torch.tensor([0, 0, 1, 1]), ("a", "b"))


# --- tasks


def tasks(**options):
    return FewShotTasks(glyphs("evaluation"), **options)


@mistakes.told(r"`shots`")
def more_shots_than_images():
    tasks(classes=5, shots=10**4, targets=2)


@mistakes.told(r"`seed`")
def a_seed_that_is_a_string():
    tasks(classes=5, shots=1, targets=2, seed="0")


@mistakes.told(r"`shots`|`classes`")
def more_classes_than_there_are():
    tasks(classes=10**4, shots=1, targets=2)


@mistakes.told(r"`data`.*LabelledImages")
def a_tensor_for_a_data_set():
    FewShotTasks(ink(20, *SHAPE), classes=5, shots=1, targets=2)


@mistakes.told(r"`steps`")
def steps_that_are_a_string():
    fit(*vae(), [(X,)], VIMCO(2), steps="100", progress=False)


@mistakes.told(r"`draws`.*at least 1")
def no_draws():
    information_gain(*vae(), X, draws=0)


# --- sequences


def mixer():
    return TitansLMM(8, heads=2, chunk_size=4)


TOKENS = torch.zeros(2, 5, 8)


@mistakes.told(r"`state`")
def a_tensor_for_a_state():
    mixer()(TOKENS, torch.zeros(2, 8))


@mistakes.told(r"`state`.*None")
def a_state_of_another_mixer():
    mixer()(TOKENS, TitansMAG(8, heads=2, chunk_size=4)(TOKENS)[1])


@mistakes.told(r"`state`.*None")
def a_state_of_an_lstm_for_attention():
    TransformerMixer(8, heads=2)(TOKENS, LSTMMixer(8)(TOKENS)[1])


@mistakes.told(r"`state`.*2 sequences")
def a_state_of_another_batch():
    mixer()(TOKENS, mixer()(torch.zeros(3, 5, 8))[1])


@mistakes.told(r"`state`.*2 sequences")
def a_state_of_another_batch_for_memory_as_context():
    make = TitansMAC(8, heads=2, chunk_size=4, segment=8)
    make.step(TOKENS[:, 0], make(torch.zeros(3, 5, 8))[1])


@mistakes.told(r"`lengths`")
def lengths_that_are_longer_than_time():
    mixer()(TOKENS, None, torch.tensor([5, 6]))


@mistakes.told(r"`lengths`.*(integer|long)")
def lengths_that_are_floats():
    mixer()(TOKENS, None, torch.tensor([5.0, 4.0]))


@mistakes.told(r"`lengths`")
def lengths_of_another_batch():
    mixer()(TOKENS, None, torch.tensor([5, 4, 3]))


def sequence_model():
    return SequenceModel.tokens(7, TitansLMM, dim=8, blocks=1)


@mistakes.told(r"`state`")
def a_tensor_for_the_state_of_a_sequence_model():
    sequence_model().read(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 8))


@mistakes.told(r"`state`")
def a_mixers_state_for_a_sequence_model():
    sequence_model().step(torch.zeros(2, dtype=torch.long), mixer()(TOKENS)[1])


@mistakes.told(r"`x`.*(long|integer)")
def tokens_that_are_floats():
    sequence_model().read(torch.zeros(2, 3))


@mistakes.told(r"`x`.*0 \.\. 6")
def tokens_outside_the_vocabulary():
    sequence_model().read(torch.full((2, 3), 7))


@mistakes.told(r"`mask`.*bool")
def a_mask_that_is_float():
    sequence_model()(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3))


@mistakes.told(r"`heads`")
def heads_that_do_not_divide_the_width():
    NeuralMemory(10, heads=4)


@mistakes.told(r"`mixer`")
def a_mixer_that_is_built_already():
    SequenceModel.tokens(7, mixer(), dim=8)


# --- kernels


def memory_arguments(**changed):
    token, gate = torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5)
    arguments = {"q": token, "k": token, "v": token, "weights": (torch.zeros(1, 4, 4),), "lr": gate, "momentum": gate}
    return arguments | {"decay": gate, "chunk_size": 2} | changed


@mistakes.told(r"`weights` must be a sequence")
def a_tensor_for_the_layers_of_a_memory():
    neural_memory(**memory_arguments(weights=torch.zeros(1, 4, 4)))


@mistakes.told(r"`lr`|`momentum`")
def a_number_for_a_gate():
    neural_memory(**memory_arguments(momentum=0.9))


@mistakes.told(r"`q`")
def queries_of_another_length():
    neural_memory(**memory_arguments(q=torch.zeros(1, 1, 6, 4)))


@mistakes.told(r"`mask`.*bool")
def a_mask_of_numbers_for_an_address():
    fused_address(torch.zeros(2, 3), torch.zeros(4, 3), mask=torch.ones(4))


@mistakes.told(r"`query`|`key`")
def keys_of_another_dimension():
    fused_address(torch.zeros(2, 3), torch.zeros(4, 2))


@mistakes.told(r"`decay`")
def a_number_for_the_decay_of_a_scan():
    decay_scan(torch.zeros(2, 5, 3), "0.9")


WORKS = {
    "numpy images": lambda: bound(X.numpy(), SlotMemory(ITEMS)),
    "a numpy array in a memory": lambda: bound(X, SlotMemory(ITEMS.numpy())),
    "lists of numbers": lambda: SlotMemory(ITEMS.tolist()),
    "numpy lengths": lambda: mixer()(TOKENS, None, np.array([5, 3])),
    "a numpy integer for a seed": lambda: FewShotTasks(
        glyphs("evaluation"), classes=2, shots=1, targets=2, seed=np.int64(3)
    ),
    "a template memory": lambda: bound(X, pair=lambda: vma(templates=TemplateMemory(3, SHAPE))),
}
