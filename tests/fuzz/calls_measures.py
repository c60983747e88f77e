"""A small call of each public callable of measurements, training, contracts and shipped weights."""

import torch
from fuzz.parts import (
    SHAPE,
    base,
    base_guide,
    folder,
    images,
    kept,
    letters,
    longs,
    positional,
    slots,
    tokens_model,
    vma,
    vma_guide,
)
from pyro.infer import Trace_ELBO

from pyro_memory import (
    SlotMemory,
    fit,
    importance_bound,
    information_gain,
    memory_contribution,
    posterior_address,
)  # fmt: skip
from pyro_memory.diagnostics import (
    AddressInformation,
    BoundEstimate,
    Calibration,
    ClassAgreement,
    FeatureClassifier,
    FrechetDistance,
    InformationGain,
    LatentInformation,
    MemoryContribution,
    PosteriorAddress,
    RateDistortion,
    Reliability,
    SiteCalibration,
    SiteInformation,
    TokenSurprise,
    axes_or_new,
    calibrate,
    class_agreement,
    frechet_distance,
    plot_images,
    plot_levels,
    plot_rate_distortion,
    plot_text,
    plot_usage,
    posterior_to_arviz,
    prototype_sets,
    rate_distortion,
    standard_error,
    to_arviz,
    token_surprise,
    train_classifier,
)
from pyro_memory.guides import VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA, LSTMMixer
from pyro_memory.testing import check_base, check_mixer, check_pair, check_store
from pyro_memory.training import (
    FitResult,
    Ranks,
    load_checkpoint,
    load_weights,
    read_header,
    save_checkpoint,
    warm_cosine,
)
from pyro_memory.zoo import Card, load_memory, load_pretrained, pretrained, save_pretrained


def called(**call):
    return call


def pair(**more):
    return {"model": vma(), "guide": vma_guide(), **more}


def looked_up(**more):
    return pair(**more, x=images(), memory=slots())


def estimate(data=3):
    return BoundEstimate(torch.randn(data), torch.ones(data), 4)


def site():
    return SiteInformation(torch.rand(3), "datum", "closed form", 0.1)


def usage():
    return torch.full((5,), 0.2)


def address():
    return AddressInformation(5, 1.6, 4.0, 3, "", 0.5, 0.1, usage(), torch.zeros(5).bool())


def latent():
    return LatentInformation(2, 3, "datum", "", torch.rand(2), torch.ones(2).bool())


def rate():
    return RateDistortion(torch.rand(2, 3), torch.rand(2, 3))


def gain():
    return InformationGain({"a": site()}, site(), {"a": address()}, 2)


def contribution():
    return MemoryContribution(estimate(), {"shuffled": estimate()})


def found():
    return PosteriorAddress(torch.rand(3, 5), torch.rand(3, 5), torch.ones(3), 4, "a", "datum", "enumerated")


def ranked():
    return SiteCalibration(torch.rand(6, 1, 2), torch.zeros(2, 99))


def calibration():
    return Calibration({"z": ranked()}, 6, 9)


def reliability():
    return Reliability(*torch.rand(4, 6, 10))


def surprise():
    return TokenSurprise(torch.rand(2, 5), torch.ones(2, 5).bool())


@kept
def classifier():
    return FeatureClassifier(SHAPE, 5, dim=4)


def embedded(count=4):
    return torch.randn(2, count, 3)


DIAGNOSTICS = {
    "AddressInformation": lambda: (
        AddressInformation,
        called(
            slots=5, ceiling=1.6, effective_slots=4.0, data=3, reason="", mutual_information=0.5, marginal_kl=0.1,
            usage=usage(), dead=torch.zeros(5).bool(),
        ),
    ),
    "AddressInformation.lines": lambda: (address().lines, called(name="a")),
    "BoundEstimate": lambda: (
        BoundEstimate,
        called(bound=torch.randn(3), effective_particles=torch.ones(3), particles=4),
    ),
    "BoundEstimate.cat": lambda: (BoundEstimate.cat, called(parts=[estimate(), estimate()])),
    "BoundEstimate.plot": lambda: (estimate().plot, called(ax=None)),
    "Calibration": lambda: (Calibration, called(sites={"z": ranked()}, simulations=6, draws=9)),
    "Calibration.__getitem__": lambda: (calibration().__getitem__, called(site="z")),
    "Calibration.plot": lambda: (calibration().plot, called(ax=None)),
    "ClassAgreement": lambda: (ClassAgreement, called(agreement=0.5, se=0.1, real=0.9, real_se=0.1, chance=0.2)),
    "FeatureClassifier": lambda: (FeatureClassifier, called(shape=SHAPE, classes=5, dim=4)),
    "FeatureClassifier.features": lambda: (classifier().features, called(images=images())),
    "FeatureClassifier.forward": lambda: (classifier(), called(images=images())),
    "FrechetDistance": lambda: (FrechetDistance, called(distance=1.0, se=0.1, counts=(4, 5))),
    "InformationGain": lambda: (
        InformationGain,
        called(
            sites={"a": site()}, joint=site(), addresses={"a": address()}, draws=2, notes=("a note",),
            latents={"z": latent()},
        ),
    ),
    "InformationGain.__getitem__": lambda: (gain().__getitem__, called(site="a")),
    "InformationGain.plot": lambda: (gain().plot, called(ax=None)),
    "LatentInformation": lambda: (
        LatentInformation,
        called(
            dims=2, data=3, unit="datum", reason="", kl_by_dimension=torch.rand(2), informative=torch.ones(2).bool(),
            mean_variance=torch.rand(2), active=torch.ones(2).bool(), mutual_information=0.5,
            mutual_information_se=0.1, marginal_kl=0.1, marginal_kl_se=0.1,
        ),
    ),
    "LatentInformation.lines": lambda: (latent().lines, called(name="z")),
    "LatentInformation.plot": lambda: (latent().plot, called(ax=None)),
    "MemoryContribution": lambda: (
        MemoryContribution,
        called(given=estimate(), alternatives={"shuffled": estimate()}),
    ),
    "MemoryContribution.gain": lambda: (contribution().gain, called(name="shuffled")),
    "MemoryContribution.plot": lambda: (contribution().plot, called(ax=None)),
    "MemoryContribution.differences": lambda: (contribution().differences, called(name="shuffled")),
    "PosteriorAddress": lambda: (
        PosteriorAddress,
        called(
            probs=torch.rand(3, 5), se=torch.rand(3, 5), effective_particles=torch.ones(3), particles=4, site="a",
            unit="datum", method="enumerated",
        ),
    ),
    "PosteriorAddress.plot": lambda: (found().plot, called(ax=None, most=2)),
    "posterior_address": lambda: (
        positional(posterior_address, "model", "guide", "x", "memory"),
        looked_up(
            site="a", exact=False, particles=4, draws=2, chunk_size=2, max_plate_nesting=1, progress=False,
        ),
    ),
    "RateDistortion": lambda: (RateDistortion, called(rates=torch.rand(2, 3), distortions=torch.rand(2, 3))),
    "RateDistortion.plot": lambda: (rate().plot, called(ax=None)),
    "Reliability": lambda: (
        Reliability,
        called(**dict(zip(("hits", "predicted", "pairs", "variance"), torch.rand(4, 6, 10), strict=True))),
    ),
    "Reliability.plot": lambda: (reliability().plot, called(ax=None)),
    "SiteCalibration": lambda: (
        SiteCalibration,
        called(ranks=torch.rand(6, 1, 2), band=torch.zeros(2, 99), reliability=reliability()),
    ),
    "SiteCalibration.coverage": lambda: (ranked().coverage, called(share=0.9)),
    "SiteCalibration.plot": lambda: (ranked().plot, called(ax=None)),
    "SiteInformation": lambda: (
        SiteInformation,
        called(kl=torch.rand(3), unit="datum", method="closed form", draws_se=0.1),
    ),
    "TokenSurprise": lambda: (TokenSurprise, called(nats=torch.rand(2, 5), scored=torch.ones(2, 5).bool())),
    "TokenSurprise.cat": lambda: (TokenSurprise.cat, called(parts=[surprise(), surprise()])),
    "TokenSurprise.plot": lambda: (surprise().plot, called(ax=None, sequence=1)),
    "axes_or_new": lambda: (axes_or_new, called(ax=None)),
    "calibrate": lambda: (
        positional(calibrate, "model", "guide", "x", "memory"),
        looked_up(simulations=2, draws=3, data={"x": 0}, seed=0, progress=False),
    ),
    "class_agreement": lambda: (
        class_agreement,
        called(generated=embedded(), real=embedded(), prototypes=embedded(3)),
    ),
    "frechet_distance": lambda: (frechet_distance, called(one=torch.randn(20, 3), other=torch.randn(20, 3))),
    "importance_bound": lambda: (
        positional(importance_bound, "model", "guide", "x", "memory"),
        looked_up(particles=4, draws=2, exact=("a",), chunk_size=2, max_plate_nesting=1, progress=False),
    ),
    "information_gain": lambda: (
        positional(information_gain, "model", "guide", "x", "memory"),
        looked_up(draws=2, max_plate_nesting=1),
    ),
    "memory_contribution": lambda: (
        positional(memory_contribution, "model", "guide", "x", "memory"),
        looked_up(
            alternatives={"other": slots(4)}, particles=4, draws=2, exact=(), chunk_size=2, max_plate_nesting=1, seed=0,
            progress=False,
        ),
    ),
    "plot_images": lambda: (plot_images, called(rows=[images(), images()], labels=("one", "two"), ax=None)),
    "plot_levels": lambda: (plot_levels, called(nats={1: {"a": 0.5}, 2: {"a": 0.7}}, ax=None)),
    "plot_rate_distortion": lambda: (plot_rate_distortion, called(estimates={"one": rate()}, ax=None)),
    "plot_text": lambda: (
        plot_text,
        called(text="abc", nats=torch.rand(3), ax=None, columns=72, highest=8.0),
    ),
    "plot_usage": lambda: (plot_usage, called(usage=usage(), prior=usage(), ax=None)),
    "posterior_to_arviz": lambda: (
        positional(posterior_to_arviz, "model", "guide", "x", "memory"),
        looked_up(draws=4, chains=2, chunk_size=3, predictive=True, max_plate_nesting=1, progress=False),
    ),
    "prototype_sets": lambda: (
        prototype_sets,
        called(data=letters(), classes=longs(0, 2), support=1, seed=0),
    ),
    "rate_distortion": lambda: (
        positional(rate_distortion, "model", "guide", "x", "memory"),
        looked_up(draws=2, max_plate_nesting=1),
    ),
    "standard_error": lambda: (standard_error, called(values=torch.randn(5))),
    "to_arviz": lambda: (to_arviz, called(record=estimate())),
    "token_surprise": lambda: (
        positional(token_surprise, "model", "x"),
        called(model=tokens_model(), x=torch.randint(7, (2, 5)), draws=2, site="x"),
    ),
    "train_classifier": lambda: (
        train_classifier,
        called(data=letters(), steps=2, batch=4, seed=0, progress=False),
    ),
}  # fmt: skip


def fresh():
    return VMA.mlp(SHAPE, 2, (8,)), VMAGuide.mlp(SHAPE, 2, (8,), matching_dim=4)


def batches():
    return [(images(), slots()) for _ in range(2)]


def trained(**more):
    """A new pair, its optimizer and a file that holds them."""
    model, guide = fresh()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()])
    path = save_checkpoint(folder() / "run.safetensors", model, guide, optimizer)
    return {"path": path, "model": model, "guide": guide, "optimizer": optimizer, **more}


def rates():
    return lambda step: 1.0


def scored():
    return lambda step: {"score": 1.0}


HISTORY = {"step": [10], "bound": [1.0], "data": [3], "information": [], "evaluation": []}
TRAINING = {
    "FitResult": lambda: (
        FitResult,
        called(
            steps=2, seconds=1.0, cpu_seconds=1.0, history={"step": [], "bound": [], "information": []},
            checkpoint=folder(),
        ),
    ),
    "FitResult.plot": lambda: (
        FitResult(2, 1.0, 1.0, HISTORY, None).plot,
        called(ax=None),
    ),
    "Ranks": lambda: (Ranks, called(device="cpu")),
    "Ranks.share": lambda: (Ranks().share, called(step=1)),
    "Ranks.mean": lambda: (Ranks().mean, called(value=1.0)),
    "Ranks.any": lambda: (Ranks().any, called(flag=True)),
    "Ranks.gradients": lambda: (
        Ranks().gradients,
        pair(objective=Trace_ELBO(), trained=torch.nn.ModuleList([vma(), vma_guide()])),
    ),
    "fit": lambda: (
        fit,
        dict(zip(("model", "guide"), fresh(), strict=True))
        | called(
            batches=batches(), objective=Trace_ELBO(), steps=2, further=(), batch_size=None, learning_rate=1e-3,
            optimizer=torch.optim.Adam,
            schedule=rates(), clip_norm=1.0, evaluate=scored(), evaluate_every=2, information_every=2,
            checkpoint=folder() / "run.safetensors", checkpoint_every=1, resume=True, seed=0, device="cpu",
            progress=False,
        ),
    ),
    "load_checkpoint": lambda: (load_checkpoint, trained()),
    "load_weights": lambda: (load_weights, {k: v for k, v in trained().items() if k != "optimizer"}),
    "read_header": lambda: (read_header, called(path=trained()["path"])),
    "save_checkpoint": lambda: (
        save_checkpoint,
        trained(step=2, record={"a": 1}, batches={"place": torch.tensor(3)}),
    ),
    "warm_cosine": lambda: (warm_cosine, called(steps=20, warm=5, floor=0.1)),
}  # fmt: skip
CHECKS = {
    "check_base": lambda: (
        check_base,
        called(base=base("vae"), guide=base_guide("vae"), x=images(4), make=None, objective=None),
    ),
    "check_mixer": lambda: (check_mixer, called(mixer=LSTMMixer(8), dim=8)),
    "check_pair": lambda: (
        positional(check_pair, "model", "guide", "x"),
        called(
            model=VAE.mlp(SHAPE, 2, (8,)), guide=VAEGuide.mlp(SHAPE, 2, (8,)), x=images(), make=None,
            objective=Trace_ELBO(), per_datum=True, combinations=4,
        ),
    ),
    "check_store": lambda: (
        check_store,
        called(store=SlotMemory(torch.rand(4, 2)), write=lambda s: s.write(torch.rand(1, 2)), read=None, tensors=True),
    ),
}  # fmt: skip
SIZES = {"shape": SHAPE, "latent_dim": 2, "hidden": [8]}
BUILD = {"model": ("VAE.mlp", SIZES), "guide": ("VAEGuide.mlp", SIZES)}
FACTS = dict.fromkeys(("about", "data", "licence", "protocol", "training"), "told") | {"numbers": {}, "commit": "none"}


@kept
def shipped():
    """A folder that holds a pair's weights."""
    where = folder().resolve()
    save_pretrained("small", VAE.mlp(**SIZES), VAEGuide.mlp(**SIZES), build=BUILD, facts=FACTS, folder=where)
    return where


ZOO = {
    "Card": lambda: (Card, called(name="small", facts=FACTS, build=BUILD, sha256="0")),
    "pretrained": lambda: (pretrained, called(folder=shipped())),
    "load_pretrained": lambda: (load_pretrained, called(name="small", folder=shipped())),
    "load_memory": lambda: (load_memory, called(name="vsm-vae-omniglot")),
    "save_pretrained": lambda: (
        save_pretrained,
        called(
            name="small", model=VAE.mlp(**SIZES), guide=VAEGuide.mlp(**SIZES), build=BUILD, facts=FACTS,
            folder=folder(), memory=None,
        ),
    ),
}  # fmt: skip
ROWS = DIAGNOSTICS | TRAINING | CHECKS | ZOO
