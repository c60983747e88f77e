"""A small call of each public callable of addresses, distributions and networks."""

import pyro.distributions as dist
import torch
from fuzz.parts import (
    SHAPE,
    address,
    base,
    embedding,
    images,
    longs,
    slots,
    told,
    vma,
    vma_guide,
)
from torch import nn

from pyro_memory import FrozenAddress, LearnedPrior, NearestAddress, ShardedMemory, SlotIndex, SlotMemory, UniformPrior
from pyro_memory.addressing import ContentAddress, Cosine, Dot, NormalizedKey
from pyro_memory.distributions import (
    AddressedBernoulli,
    AddressedCategorical,
    AddressedMultinomial,
    AddressedPoisson,
    AutoregressiveImage,
    CosineSchedule,
    DenoisingPath,
    Division,
    NearestCategorical,
    NoisingPath,
    ShardedCategorical,
    StreamedCategorical,
    all_of,
    expected_log_prob,
    log_prior_row,
    spread,
)
from pyro_memory.nets import (
    BernoulliImage,
    ContentPrior,
    Context,
    ConvDecoder,
    Embedding,
    GaussianHead,
    GaussianImage,
    GaussianMLP,
    ImageMLP,
    ImagePyramid,
    Linear,
    MLPDecoder,
    Pages,
    PairEncoder,
    SkipPyramid,
    broadcast_cat,
    evaluating,
    mlp,
    modes_kept,
    out_of_autocast,
    scale_for_relu,
    with_code,
)


def called(**call):
    return call


def compared():
    return {"query": torch.randn(3, 4), "key": torch.randn(5, 4)}


def keyed():
    return SlotMemory(slots().values, torch.randn(5, 4))


def frozen():
    return FrozenAddress(address(), sharpness=2.0)


def looked_up(**more):
    return {"x": images(), "memory": slots(), **more}


def index():
    return SlotIndex("brute").build(torch.randn(5, 4))


def probes():
    return {"query": torch.randn(3, 4), "nearest": 2}


ADDRESSING = {
    "ContentAddress": lambda: (
        ContentAddress,
        called(query=embedding(), key=embedding(), similarity=Dot(), stream=False),
    ),
    "ContentAddress.forward": lambda: (address(), looked_up()),
    "ContentAddress.query_for": lambda: (address().query_for, called(x=images())),
    "ContentAddress.keys_for": lambda: (address().keys_for, called(memory=slots(), slots=longs(0, 4, 1))),
    "ContentAddress.embed": lambda: (address().embed, called(memory=slots(), dtype=torch.float32)),
    "Cosine": lambda: (Cosine, called(temperature=0.1)),
    "Cosine.forward": lambda: (Cosine(), compared()),
    "Dot.forward": lambda: (Dot(), compared()),
    "NormalizedKey.forward": lambda: (NormalizedKey(), compared()),
    "FrozenAddress": lambda: (FrozenAddress, called(address=address(), sharpness=2.0)),
    "FrozenAddress.forward": lambda: (frozen(), called(x=images(), memory=keyed())),
    "FrozenAddress.query_for": lambda: (frozen().query_for, called(x=images())),
    "FrozenAddress.keys_for": lambda: (frozen().keys_for, called(memory=keyed(), slots=longs(0, 4, 1))),
    "FrozenAddress.embed": lambda: (frozen().embed, called(memory=keyed())),
    "LearnedPrior": lambda: (LearnedPrior, called(key=embedding(), dim=4)),
    "LearnedPrior.forward": lambda: (LearnedPrior(embedding(), 4), called(memory=slots())),
    "UniformPrior.forward": lambda: (UniformPrior(), called(memory=slots())),
    "NearestAddress": lambda: (
        NearestAddress,
        called(address=address(), nearest=2, epsilon=0.1, index=SlotIndex("brute")),
    ),
    "NearestAddress.forward": lambda: (NearestAddress(address(), 2, epsilon=0.1), looked_up()),
    "SlotIndex": lambda: (SlotIndex, called(kind="brute", check_every=10, max_staleness=0.1, effort=8)),
    "SlotIndex.build": lambda: (
        SlotIndex("brute").build,
        called(keys=torch.randn(5, 4), mask=torch.tensor([True, True, False, True, True])),
    ),
    "SlotIndex.search": lambda: (index().search, probes()),
    "SlotIndex.recall": lambda: (index().recall, probes()),
    "SlotIndex.staleness": lambda: (index().staleness, called(current=torch.randn(2, 4), slots=longs(0, 3))),
    "SlotIndex.settle": lambda: (SlotIndex("brute").settle, called(address=address(), memory=slots())),
}


def streamed():
    return StreamedCategorical(**compared())


def nearest():
    best = longs(0, 1, 2, 3, 4, 0).reshape(3, 2)
    return NearestCategorical(best, torch.randn(3, 2), 5, epsilon=0.1)


def addressed(kind, *shape, **more):
    """The rows of a likelihood of what an address reads."""
    call = {"log_rate" if kind is AddressedPoisson else "logits": torch.randn(5, *shape), "a": longs(0, 4, 1), **more}
    value = torch.ones(3, 4, dtype=torch.long if kind is AddressedCategorical else torch.float32)
    return {
        kind.__name__: lambda: (kind, called(**call, validate_args=True)),
        **methods(kind.__name__, lambda: kind(**call), lambda: called(value=value)),
    }


def divided():
    return ShardedMemory(SlotMemory(torch.rand(5, 4))).streamed(**compared())


def steps():
    return base("diffusion", 3).path_dist(told("diffusion"), (3,))


def noised():
    return {"x0": images(), "xt": torch.randn(3, *SHAPE), "t": longs(2, 3, 4)}


def noising():
    return NoisingPath(images(), CosineSchedule(3))


def even():
    pixels = dist.Bernoulli(torch.full(SHAPE, 0.5)).to_event(3)
    return AutoregressiveImage(pixels.log_prob, pixels.sample, (3,), SHAPE)


def normal():
    return dist.Normal(torch.zeros(5, 3), torch.ones(5, 3)).to_event(1)


def uniform():
    return dist.Categorical(logits=torch.zeros(5))


def methods(name, make, value, expand=(3,), sample=(2,)):
    """The calls that the distributions share."""
    return {
        f"{name}.expand": lambda: (make().expand, called(batch_shape=expand)),
        f"{name}.sample": lambda: (make().sample, called(sample_shape=sample)),
        f"{name}.log_prob": lambda: (make().log_prob, value()),
    }


def over_slots(name, make):
    return {
        **methods(name, make, lambda: called(value=longs(0, 4, 1))),
        f"{name}.kl_to": lambda: (make().kl_to, called(prior=uniform())),
    }


DISTRIBUTIONS = {
    **addressed(AddressedBernoulli, 4),
    **addressed(AddressedPoisson, 4),
    **addressed(AddressedMultinomial, 4, total_count=4),
    **addressed(AddressedCategorical, 4, 2),
    "AutoregressiveImage": lambda: (
        AutoregressiveImage,
        called(log_prob=even().log_prob, draw=even().sample, batch_shape=(3,), image_shape=SHAPE),
    ),
    "AutoregressiveImage.weighed": lambda: (even().weighed, called(value=images(), log_prob=torch.zeros(3))),
    **methods("AutoregressiveImage", even, lambda: called(value=images())),
    "CosineSchedule": lambda: (CosineSchedule, called(steps=4, first=0.4)),
    "CosineSchedule.marginal": lambda: (CosineSchedule(4).marginal, called(x0=images(), t=longs(1, 2, 4))),
    "CosineSchedule.posterior_mean": lambda: (CosineSchedule(4).posterior_mean, noised()),
    "CosineSchedule.reverse": lambda: (
        CosineSchedule(4).reverse,
        called(ink_logits=torch.randn(3, *SHAPE), xt=torch.randn(3, *SHAPE), t=longs(2, 3, 4)),
    ),
    "DenoisingPath": lambda: (
        DenoisingPath,
        called(step=steps().step, schedule=CosineSchedule(3), batch_shape=(3,), image_shape=SHAPE),
    ),
    **methods("DenoisingPath", steps, lambda: called(path=noising().sample()), sample=()),
    "NoisingPath": lambda: (NoisingPath, called(x0=images(), schedule=CosineSchedule(3))),
    "NoisingPath.expand": lambda: (noising().expand, called(batch_shape=(2, 3))),
    "NoisingPath.rsample": lambda: (noising().rsample, called(sample_shape=(2,))),
    "NoisingPath.log_prob": lambda: (noising().log_prob, called(path=noising().sample())),
    "NearestCategorical": lambda: (
        NearestCategorical,
        called(
            best=longs(0, 1, 3, 4).reshape(2, 2), scores=torch.randn(2, 2), slots=5,
            mask=torch.tensor([True, True, False, True, True]), epsilon=0.1, validate_args=True,
        ),
    ),
    **over_slots("NearestCategorical", nearest),
    "NearestCategorical.enumerate_support": lambda: (nearest().enumerate_support, called(expand=False)),
    "StreamedCategorical": lambda: (
        StreamedCategorical,
        called(**compared(), mask=torch.tensor([True, True, False, True, True]), validate_args=True),
    ),
    **over_slots("StreamedCategorical", streamed),
    "StreamedCategorical.nearest": lambda: (streamed().nearest, called(slots=2)),
    "ShardedCategorical": lambda: (
        ShardedCategorical,
        called(**compared(), mask=None, division=Division(None, 0, 5, 5, 5)),
    ),
    "ShardedCategorical.nearest": lambda: (divided().nearest, called(slots=2)),
    "Division": lambda: (Division, called(group=None, first=0, slots=5, total=5, total_filled=5)),
    "Division.own": lambda: (Division(None, 0, 5, 5, 5).own, called(a=longs(0, 4))),
    "all_of": lambda: (all_of, called(tensor=torch.rand(3), group=None)),
    "expected_log_prob": lambda: (
        expected_log_prob,
        called(
            predictive=dist.StudentT(torch.tensor(4.0), torch.zeros(2, 3), torch.ones(2, 3)).to_event(1),
            loc=torch.randn(4, 1, 3), variance=torch.ones(4, 1, 3),
        ),
    ),
    "log_prior_row": lambda: (log_prior_row, called(prior=uniform(), slots=5)),
    "spread": lambda: (spread, called(t=torch.rand(3, 3))),
}  # fmt: skip


def pages():
    return Pages(torch.rand(2, 3, 4, 2, 2), torch.tensor([[True, False, False], [True, True, False]]), longs(0, 1, 1))


def features():
    return vma().content(images())


def code():
    return {"z": torch.randn(3, 2), "content": features()}


def decoder():
    return MLPDecoder(SHAPE, 2, vma().content.shapes, (8,))


def pyramid():
    return SkipPyramid(SHAPE, (4, 5))


NETS = {
    "BernoulliImage": lambda: (BernoulliImage, called(decoder=decoder())),
    "BernoulliImage.forward": lambda: (BernoulliImage(decoder()), code()),
    "GaussianImage": lambda: (GaussianImage, called(decoder=decoder(), scale=0.3)),
    "GaussianImage.forward": lambda: (GaussianImage(decoder()), code()),
    "ContentPrior": lambda: (ContentPrior, called(shape=(5, 3, 3), latent_dim=2)),
    "ContentPrior.forward": lambda: (ContentPrior((5, 3, 3), 2), called(content=(torch.randn(3, 5, 3, 3),))),
    "Context": lambda: (Context, called(code=torch.randn(3, 2), content=features(), pages=pages())),
    "Pages": lambda: (Pages, vars(pages()).copy()),
    "ConvDecoder": lambda: (ConvDecoder, called(shape=SHAPE, latent_dim=2, channels=(4, 5))),
    "ConvDecoder.forward": lambda: (
        ConvDecoder(SHAPE, 2, (4, 5)),
        called(z=torch.randn(3, 2), content=pyramid()(images())),
    ),
    "MLPDecoder": lambda: (
        MLPDecoder,
        called(shape=SHAPE, latent_dim=2, content_shapes=((4, 3, 3),), hidden=(8, 6)),
    ),
    "MLPDecoder.forward": lambda: (decoder(), code()),
    "Embedding": lambda: (Embedding, called(features=ImageMLP(SHAPE, (8,)), dim=4)),
    "Embedding.forward": lambda: (embedding(), called(images=images())),
    "GaussianHead": lambda: (GaussianHead, called(in_features=4, latent_dim=2)),
    "GaussianHead.forward": lambda: (GaussianHead(4, 2), called(features=torch.randn(3, 4))),
    "GaussianMLP": lambda: (GaussianMLP, called(in_features=4, hidden=8, latent_dim=2)),
    "GaussianMLP.forward": lambda: (GaussianMLP(4, 8, 2), called(features=torch.randn(3, 4))),
    "ImageMLP": lambda: (ImageMLP, called(shape=SHAPE, hidden=(8, 6))),
    "ImageMLP.forward": lambda: (ImageMLP(SHAPE, (8, 6)), called(images=images())),
    "ImagePyramid": lambda: (ImagePyramid, called(shape=SHAPE, channels=(4, 5))),
    "ImagePyramid.forward": lambda: (ImagePyramid(SHAPE, (4, 5)), called(images=images())),
    "SkipPyramid": lambda: (SkipPyramid, called(shape=SHAPE, channels=(4, 5))),
    "SkipPyramid.forward": lambda: (pyramid(), called(images=images())),
    "PairEncoder": lambda: (PairEncoder, called(features=ImageMLP(SHAPE, (8,)), latent_dim=2)),
    "PairEncoder.forward": lambda: (vma_guide().encoder, called(x=images(), m=images())),
    "Linear": lambda: (Linear, called(in_features=4, out_features=2, takes="z")),
    "Linear.forward": lambda: (Linear(4, 2), called(x=torch.randn(3, 4))),
    "out_of_autocast": lambda: (out_of_autocast, called(t=torch.rand(3))),
    "broadcast_cat": lambda: (broadcast_cat, called(tensors=[torch.randn(3, 2), torch.randn(5, 1, 4)], dim=-1)),
    "mlp": lambda: (mlp, called(sizes=(4, 8, 2))),
    "evaluating": lambda: (evaluating, called(module=nn.Linear(2, 3))),
    "modes_kept": lambda: (modes_kept, called(module=nn.Linear(2, 3))),
    "scale_for_relu": lambda: (scale_for_relu, called(module=nn.Linear(2, 3))),
    "with_code": lambda: (with_code, called(z=torch.randn(3, 2), context=Context(torch.randn(3, 4)))),
}

ROWS = ADDRESSING | DISTRIBUTIONS | NETS
