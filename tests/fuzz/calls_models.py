"""A small call of each public callable of the models and guides of images and sets."""

import torch
from fuzz.parts import (
    CONV,
    SHAPE,
    address,
    addressed,
    addressed_guide,
    base,
    base_guide,
    concepts,
    embedded,
    images,
    longs,
    queries,
    recall,
    slots,
    structured,
    support,
    told,
    vma,
    vma_guide,
    vsm,
)

from pyro_memory import TemplateMemory, UniformPrior
from pyro_memory.guides import (
    AddressedGuide,
    AutoregressiveBaseGuide,
    BaseGuide,
    ConsolidationGuide,
    DiffusionBaseGuide,
    EmptyGuide,
    HierarchicalBaseGuide,
    SoftAttentionVAEGuide,
    VAEBaseGuide,
    VAEGuide,
    VMAGuide,
    VSMGuide,
)
from pyro_memory.models import (
    VAE,
    VMA,
    VSM,
    Addressed,
    Attended,
    AutoregressiveBase,
    BaseModel,
    ConsolidationModel,
    DiffusionBase,
    HierarchicalBase,
    SoftAttentionVAE,
    VAEBase,
)
from pyro_memory.nets import BernoulliImage, Context, GaussianImage


def called(**call):
    return call


def looked_up():
    return {"x": images(), "memory": slots()}


def conv(**more):
    return {"shape": SHAPE, "latent_dim": 2, **CONV, "name": "conv", **more}


def dense(**more):
    return {"shape": SHAPE, "latent_dim": 2, "hidden": (8, 8), "name": "dense", **more}


def heads(**more):
    return {"likelihood": GaussianImage, **more}


def content():
    return vma().content(images())


def templates():
    return TemplateMemory(4, SHAPE)


def vae():
    return VAE.mlp(SHAPE, 2, (8, 8))


def vae_guide():
    return VAEGuide.mlp(SHAPE, 2, (8, 8))


def soft():
    return SoftAttentionVAE.convolutional(SHAPE, 2, (4, 5), matching_dim=4)


def soft_guide():
    return SoftAttentionVAEGuide.convolutional(SHAPE, 2, (4, 5), matching_dim=4)


def drawn(**more):
    return {"memory": slots(), "shape": (), "a": longs(0, 4), **more}


def z():
    return torch.randn(3, 2)


PAIRS = {
    "VAE": lambda: (VAE, called(latent_dim=2, likelihood=vae().likelihood, name="vae")),
    "VAE.convolutional": lambda: (VAE.convolutional, heads(**conv())),
    "VAE.mlp": lambda: (VAE.mlp, heads(**dense())),
    "VAE.x_dist": lambda: (vae().x_dist, called(z=z())),
    "VAE.forward": lambda: (vae(), looked_up()),
    "VAEGuide": lambda: (VAEGuide, called(encoder=vae_guide().encoder, name="guide")),
    "VAEGuide.convolutional": lambda: (VAEGuide.convolutional, conv()),
    "VAEGuide.mlp": lambda: (VAEGuide.mlp, dense()),
    "VAEGuide.z_dist": lambda: (vae_guide().z_dist, called(x=images())),
    "VAEGuide.forward": lambda: (vae_guide(), looked_up()),
    "VMA": lambda: (
        VMA,
        called(
            content=vma().content, prior=vma().prior, likelihood=vma().likelihood, address_prior=UniformPrior(),
            templates=templates(), none_slot=True, name="vma",
        ),
    ),
    "VMA.convolutional": lambda: (VMA.convolutional, heads(**conv(tied=False, none_slot=True))),
    "VMA.mlp": lambda: (VMA.mlp, heads(**dense(templates=templates()))),
    "VMA.a_dist": lambda: (vma().a_dist, called(memory=slots())),
    "VMA.z_dist": lambda: (vma().z_dist, called(content=content())),
    "VMA.x_dist": lambda: (vma().x_dist, called(z=z(), content=content())),
    "VMA.forward": lambda: (vma(), looked_up()),
    "VMA.generate": lambda: (vma().generate, drawn()),
    "VMAGuide": lambda: (
        VMAGuide,
        called(
            address=address(), encoder=vma_guide().encoder, templates=templates(), none_slot=True, name="guide",
        ),
    ),
    "VMAGuide.convolutional": lambda: (
        VMAGuide.convolutional,
        conv(matching_dim=4, tied=False, none_slot=True),
    ),
    "VMAGuide.mlp": lambda: (VMAGuide.mlp, dense(matching_dim=4, tied=False, templates=templates())),
    "VMAGuide.a_dist": lambda: (vma_guide().a_dist, looked_up()),
    "VMAGuide.z_dist": lambda: (vma_guide().z_dist, called(x=images(), m=images())),
    "VMAGuide.forward": lambda: (vma_guide(), looked_up()),
    "SoftAttentionVAE": lambda: (
        SoftAttentionVAE,
        called(
            attention=soft().attention, content=soft().content, likelihood=soft().likelihood, latent_dim=2,
            name="soft",
        ),
    ),
    "SoftAttentionVAE.convolutional": lambda: (SoftAttentionVAE.convolutional, heads(**conv(matching_dim=4))),
    "SoftAttentionVAE.x_dist": lambda: (soft().x_dist, called(z=z(), content=soft().content(images()))),
    "SoftAttentionVAE.forward": lambda: (soft(), looked_up()),
    "SoftAttentionVAEGuide": lambda: (
        SoftAttentionVAEGuide,
        called(attention=soft_guide().attention, encoder=soft_guide().encoder, name="guide"),
    ),
    "SoftAttentionVAEGuide.convolutional": lambda: (SoftAttentionVAEGuide.convolutional, conv(matching_dim=4)),
    "SoftAttentionVAEGuide.z_dist": lambda: (soft_guide().z_dist, called(x=images(), blend=images())),
    "SoftAttentionVAEGuide.forward": lambda: (soft_guide(), looked_up()),
    "EmptyGuide": lambda: (EmptyGuide, called(name="empty")),
}  # fmt: skip


def code():
    return Context(torch.randn(3, 3))


def codes(kind):
    return {"x": images(), "context": told(kind)}


def noised(**more):
    return {"xt": torch.randn(3, *SHAPE), "t": longs(1, 2, 3), **more}


KINDS = {
    "vae": VAEBase, "hierarchical": HierarchicalBase, "diffusion": DiffusionBase, "autoregressive": AutoregressiveBase,
}  # fmt: skip


def bases(name, kind, **options):
    """The calls that base models and their guides share."""
    sizes = {"shape": SHAPE, "code_dim": 3, **options}
    return {
        name: lambda: (KINDS[kind], {**sizes, "reads": True, "name": "base"}),
        f"{name}.explain": lambda: (base(kind, 3).explain, codes(kind)),
        f"{name}.generate": lambda: (base(kind, 3).generate, called(context=told(kind), shape=(3,))),
        f"{name}Guide.infer": lambda: (base_guide(kind, 3).infer, codes(kind)),
    }  # fmt: skip


def levels():
    return base("hierarchical", 3)


def denoiser():
    return base("diffusion", 3)


def attended():
    return Attended(base("autoregressive"))


def written():
    return base("autoregressive", 3)


BASES = {
    "Addressed": lambda: (
        Addressed,
        called(base=base("vae"), address_prior=UniformPrior(), templates=templates(), none_slot=True, name="a"),
    ),
    "Addressed.a_dist": lambda: (addressed().a_dist, called(memory=slots())),
    "Addressed.context": lambda: (addressed().context, called(a=longs(0, 4), memory=slots())),
    "Addressed.forward": lambda: (addressed(), looked_up()),
    "Addressed.generate": lambda: (addressed().generate, drawn()),
    "AddressedGuide": lambda: (
        AddressedGuide,
        called(address=address(), base=base_guide("vae"), templates=templates(), none_slot=True, name="g"),
    ),
    "AddressedGuide.convolutional": lambda: (
        AddressedGuide.convolutional,
        called(shape=SHAPE, base=base_guide("vae"), **CONV, matching_dim=4, none_slot=True),
    ),
    "AddressedGuide.a_dist": lambda: (addressed_guide().a_dist, looked_up()),
    "AddressedGuide.forward": lambda: (addressed_guide(), looked_up()),
    "BaseModel": lambda: (BaseModel, called(name="base")),
    "BaseModel.explain": lambda: (base("vae", 3).explain, codes("vae")),
    "BaseModel.generate": lambda: (base("vae", 3).generate, called(context=told("vae"), shape=(3,))),
    "BaseModel.forward": lambda: (base("vae", 0, False), called(x=images(), memory=None)),
    "BaseGuide": lambda: (BaseGuide, called(name="base")),
    "BaseGuide.infer": lambda: (base_guide("vae", 3).infer, codes("vae")),
    "BaseGuide.forward": lambda: (base_guide("vae"), called(x=images(), memory=None)),
    **bases("VAEBase", "vae", latent_dim=2, likelihood=BernoulliImage, **CONV),
    "VAEBase.z_dist": lambda: (base("vae", 3).z_dist, called(context=code())),
    "VAEBase.x_dist": lambda: (base("vae", 3).x_dist, called(z=z(), context=told("vae"))),
    "VAEBaseGuide": lambda: (
        VAEBaseGuide,
        called(shape=SHAPE, latent_dim=2, code_dim=3, **CONV, name="guide"),
    ),
    "VAEBaseGuide.z_dist": lambda: (base_guide("vae", 3).z_dist, codes("vae")),
    **bases("HierarchicalBase", "hierarchical", latent_dims=(3, 2), hidden=8, likelihood=BernoulliImage, **CONV),
    "HierarchicalBase.z_dist": lambda: (
        levels().z_dist,
        called(layer=1, above=torch.randn(3, 2), context=told("hierarchical")),
    ),
    "HierarchicalBase.x_dist": lambda: (
        levels().x_dist,
        called(codes=(torch.randn(3, 3), torch.randn(3, 2)), context=told("hierarchical")),
    ),
    "HierarchicalBaseGuide": lambda: (
        HierarchicalBaseGuide,
        called(shape=SHAPE, latent_dims=(3, 2), code_dim=3, **CONV, hidden=8, name="guide"),
    ),
    "HierarchicalBaseGuide.z_dist": lambda: (
        base_guide("hierarchical", 3).z_dist,
        called(layer=1, features=torch.randn(3, 20), above=torch.randn(3, 2), context=code()),
    ),
    **bases("DiffusionBase", "diffusion", steps=3, predicts="v", first=0.3, **CONV),
    "DiffusionBase.ink_logits": lambda: (denoiser().ink_logits, noised(context=told("diffusion"))),
    "DiffusionBase.as_ink": lambda: (denoiser().as_ink, noised(out=torch.randn(3, *SHAPE))),
    "DiffusionBase.step_dist": lambda: (denoiser().step_dist, noised(context=told("diffusion"))),
    "DiffusionBase.path_dist": lambda: (denoiser().path_dist, called(context=told("diffusion"), shape=(3,))),
    "DiffusionBase.x_dist": lambda: (
        denoiser().x_dist,
        called(x1=torch.randn(3, *SHAPE), context=told("diffusion")),
    ),
    "DiffusionBase.noisy_bound": lambda: (denoiser().noisy_bound, codes("diffusion")),
    "DiffusionBase.generate": lambda: (
        denoiser().generate,
        called(context=told("diffusion"), shape=(3,), ddim_steps=2, eta=0.5),
    ),
    "DiffusionBase.ddim_dist": lambda: (
        denoiser().ddim_dist,
        called(xt=torch.randn(3, *SHAPE), t=3, after=1, eta=0.5, context=told("diffusion")),
    ),
    "DiffusionBaseGuide": lambda: (DiffusionBaseGuide, called(steps=3, first=0.4, name="guide")),
    **bases(
        "AutoregressiveBase", "autoregressive", levels=2, block=2, maps=4, layers=(1, 2), looks=1, heads=2, unread=0.1
    ),
    "AutoregressiveBase.x_dist": lambda: (written().x_dist, called(context=told("autoregressive"), shape=(3,))),
    "AutoregressiveBase.log_prob": lambda: (
        written().log_prob,
        codes("autoregressive") | {"told": torch.ones(3).bool(), "seen": None},
    ),
    "AutoregressiveBase.generate": lambda: (
        written().generate,
        called(context=told("autoregressive"), shape=(3,), guidance=1.0, temperature=0.9, progress=False),
    ),
    "Attended": lambda: (Attended, called(base=base("autoregressive"), name="attended")),
    "Attended.context": lambda: (attended().context, called(memory=slots())),
    "Attended.forward": lambda: (attended(), looked_up()),
    "Attended.generate": lambda: (attended().generate, called(memory=slots(), shape=(2,))),
    "Attended.attention": lambda: (attended().attention, looked_up()),
    "AutoregressiveBaseGuide": lambda: (AutoregressiveBaseGuide, called(name="guide")),
}  # fmt: skip


def consolidating():
    loc, variance = embedded()
    return {"concepts": concepts(), "loc": loc, "variance": variance, "ages": longs(1, 9, 60, 3)}


def task():
    return {"x": queries(), "support": support(), "memory": structured()}


def tasks(**more):
    return {"support": support(), "memory": structured(), **more}


SETS = {
    "VSM": lambda: (VSM, called(base=base("vae", 3), recall=recall(), name="vsm")),
    "VSM.context": lambda: (
        vsm().context,
        called(
            page=longs(0, 1).reshape(2, 1), i=longs(0, 1).reshape(2, 1), c=torch.randn(2, 1, 3), memory=structured()
        ),
    ),
    "VSM.forward": lambda: (vsm(), task()),
    "VSM.recalled": lambda: (vsm().recalled, tasks()),
    "VSM.imagined": lambda: (vsm().imagined, tasks()),
    "VSM.generate": lambda: (vsm().generate, tasks(images=2, remembered=False, candidates=2)),
    "VSM.decode_concepts": lambda: (
        vsm().decode_concepts,
        called(s=torch.randn(2, 3), memory=structured(), images=2),
    ),
    "VSMGuide": lambda: (VSMGuide, called(base=base_guide("vae", 3), recall=recall(), name="guide")),
    "VSMGuide.forward": lambda: (VSMGuide(base_guide("vae", 3), recall()), task()),
    "ConsolidationModel": lambda: (ConsolidationModel, called(timescale=8.0, name="model")),
    "ConsolidationModel.forward": lambda: (ConsolidationModel(8.0), consolidating()),
    "ConsolidationGuide": lambda: (ConsolidationGuide, called(hidden=8, timescale=8.0, name="guide")),
    "ConsolidationGuide.logits": lambda: (ConsolidationGuide(8).logits, consolidating()),
    "ConsolidationGuide.probabilities": lambda: (ConsolidationGuide(8).probabilities, consolidating()),
    "ConsolidationGuide.forward": lambda: (ConsolidationGuide(8), consolidating()),
}
ROWS = PAIRS | BASES | SETS
