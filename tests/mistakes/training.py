"""Mistakes in the arguments of ``fit`` and with its files."""

from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import pyro
import torch
from conftest import ink
from mistakes.table import Mistakes
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_memory import VIMCO, TemplateMemory, fit, load_weights
from pyro_memory.guides import VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA
from pyro_memory.training import load_checkpoint, save_checkpoint

SHAPE = (1, 6, 6)
SIZES = {"latent_dim": 2, "hidden": (8, 8)}
X = ink(2, *SHAPE)
mistakes = Mistakes()


def vae(latent_dim=2):
    sizes = SIZES | {"latent_dim": latent_dim}
    return VAE.mlp(SHAPE, **sizes), VAEGuide.mlp(SHAPE, **sizes)


def train(*pair, batches=None, objective=None, **options):
    model, guide = pair or vae()
    batches = [(X,)] if batches is None else batches
    return fit(model, guide, batches, objective or Trace_ELBO(), **{"steps": 2, "progress": False} | options)


def folder():
    return Path(mkdtemp())


# --- optimizers


@mistakes.told(r"`optimizer`.*class|`optimizer`.*partial")
def an_optimizer_that_is_built_already():
    model, guide = vae()
    train(model, guide, optimizer=torch.optim.Adam(model.parameters()))


@mistakes.told(r"`optimizer`.*torch")
def an_optimizer_of_pyro():
    train(optimizer=pyro.optim.Adam({"lr": 1e-3}))


@mistakes.told(r"`optimizer`.*torch")
def the_class_of_an_optimizer_of_pyro():
    train(optimizer=pyro.optim.Adam)


@mistakes.told(r"`optimizer`.*(LBFGS|closure)")
def an_optimizer_that_wants_a_closure():
    train(optimizer=torch.optim.LBFGS)


@mistakes.told(r"`optimizer`")
def an_optimizer_that_is_a_word():
    train(optimizer="adam")


@mistakes.told(r"`optimizer`")
def an_optimizer_without_a_rate():
    train(optimizer=partial(torch.optim.Adam, beta=0.9))


@mistakes.told(r"`schedule`.*(factor|function|step)")
def a_scheduler_of_torch():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    train(schedule=torch.optim.lr_scheduler.StepLR(optimizer, 10))


@mistakes.told(r"`learning_rate`")
def a_negative_rate():
    train(learning_rate=-1e-3)


@mistakes.told(r"`clip_norm`")
def a_norm_of_zero():
    train(clip_norm=0.0)


# --- objectives and programs


@mistakes.told(r"`objective` must be an ELBO.*instance.*Trace_ELBO\(")
def an_objective_that_was_not_built():
    train(objective=Trace_ELBO)


@mistakes.told(r"`objective` must be an ELBO")
def an_objective_that_is_a_function():
    train(objective=Trace_ELBO().loss)


@mistakes.told(r"`objective` must be an ELBO")
def a_whole_svi_for_an_objective():
    model, guide = vae()
    train(objective=SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()))


@mistakes.told(r"`model`|`guide`")
def the_class_of_a_model():
    train(VAE, vae()[1])


@mistakes.told(r"`model`|`guide`")
def model_and_guide_swapped():
    train(*vae()[::-1])


@mistakes.told(r"`guide`")
def no_guide():
    train(vae()[0], None)


@mistakes.told(r"`templates`|TemplateMemory")
def templates_that_neither_program_holds():
    sizes = SIZES
    memory = TemplateMemory(3, SHAPE)
    pair = VMA.mlp(SHAPE, **sizes), VMAGuide.mlp(SHAPE, **sizes)
    train(*pair, batches=[(X, memory())], objective=VIMCO(2))


# --- batches


@mistakes.told(r"`batches` must give a tuple.*\(x,\)")
def batches_that_are_not_tuples():
    train(batches=[X, X])


@mistakes.told(r"`batches`.*(argument|\bx\b|called|memory)")
def batches_with_more_than_the_model_takes():
    train(batches=[(X, None, X)])


@mistakes.told(r"`batches`.*at least one")
def no_batches():
    train(batches=[])


@mistakes.told(r"`batches`")
def a_tensor_for_batches():
    train(batches=X)


@mistakes.told(r"`batches`")
def a_number_for_batches():
    train(batches=3)


@mistakes.told(r"`batches` ran out")
def a_generator_that_ends():
    train(batches=((X,) for _ in range(1)), steps=3)


# --- numbers


@mistakes.told(r"`steps`")
def steps_that_are_a_word():
    train(steps="100")


@mistakes.told(r"`steps`")
def half_a_step():
    train(steps=1.5)


@mistakes.told(r"`steps` must not be negative")
def negative_steps():
    train(steps=-1)


@mistakes.told(r"`seed`")
def a_seed_that_is_a_word():
    train(seed="0")


@mistakes.told(r"`information_every` must be at least 1")
def information_never():
    train(information_every=0)


@mistakes.told(r"`device`")
def a_device_that_there_is_not():
    train(device="gpu")


@mistakes.told(r"`evaluate`")
def an_evaluation_that_gives_no_numbers():
    train(evaluate=lambda step: None, evaluate_every=1)


# --- files


@mistakes.told(r"`checkpoint`.*(folder|file)")
def a_folder_for_a_checkpoint():
    train(checkpoint=folder())


@mistakes.told(r"(folder|file)")
def a_folder_to_load():
    load_weights(folder(), *vae())


@mistakes.told(r"`path` must be a file.*there is none at.*run.safetensors", (FileNotFoundError,))
def a_file_to_load_that_there_is_not():
    load_checkpoint(folder() / "run.safetensors", *vae())


@mistakes.told(r"another model")
def a_checkpoint_of_another_model():
    path = save_checkpoint(folder() / "run.safetensors", *vae(3))
    load_weights(path, *vae())


@mistakes.told(r"not a whole pyro-memory checkpoint")
def a_file_of_another_kind():
    path = folder() / "run.safetensors"
    path.write_text("weights")
    load_weights(path, *vae())
