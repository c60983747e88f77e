"""The pairs that vma_fewshot.py trains or measures: how they are built, and how their weights are left."""

import torch

from pyro_memory import load_pretrained, pretrained, save_pretrained
from pyro_memory.data import LICENCES
from pyro_memory.guides import AddressedGuide, AutoregressiveBaseGuide, DiffusionBaseGuide, VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA, Addressed, AutoregressiveBase, DiffusionBase

# What the models without memory are called.
ALONE = {"vae": "VAE", "diffusion": "diffusion", "autoregressive": "autoregressive"}
# How weights are named, with NAME: of the model without memory and of the one with it.
FILES = {
    "vae": ("vae", "vma"), "diffusion": ("diffusion", "vma-diffusion"),
    "autoregressive": ("autoregressive", "vma-autoregressive"),
}  # fmt: skip
BASES = {
    "diffusion": (DiffusionBase, DiffusionBaseGuide), "autoregressive": (AutoregressiveBase, AutoregressiveBaseGuide),
}  # fmt: skip
PROTOCOLS = {
    "vma": "VMA's: the target is never in memory",
    "gmn": "GMN's: slots are drawn with replacement, the target among them",
}
PARTICLES = 4  # of VIMCO; over a diffusion model two, that share the noise
OVER = {"vae": "", "diffusion": " over a diffusion model", "autoregressive": " over an autoregressive model"}


def files(args):
    """How weights and checkpoints of the model without memory and of VMA are named."""
    return dict(zip((ALONE[args.base], "VMA"), FILES[args.base], strict=True))


def checkpoint(name, args):
    parts = [files(args)[name], f"from-{args.start}" if args.start else ""]
    parts.append(f"lookup-of-{args.lookup}" if args.lookup and name == "VMA" else "")
    return "-".join(filter(None, parts))


def begin(background, args):
    """The pairs to train or to measure, and how ``load_pretrained`` builds them again."""
    weights = args.pretrained or args.start
    if weights:
        folder = (args.folder,) if args.folder else ()
        names = {name: f"{file}-{weights}" for name, file in files(args).items()}
        names = {name: file for name, file in names.items() if name == "VMA" or file in pretrained(*folder)}
        pairs = {name: load_pretrained(file, *folder) for name, file in names.items()}
        if args.start:
            pairs = {name: tuple(part.train() for part in pair) for name, pair in pairs.items()}
            pairs["VMA"][1].address.requires_grad_(args.address != "held")
        build = {name: pretrained(*folder)[file].build for name, file in names.items()}
        size = build["VMA"]["model"][1]  # of the record: what was built, not what was asked for
        size = size if args.base == "vae" else size["base"]["build"][1]
        args.channels, args.latent_dim = size.get("channels"), size.get("latent_dim")
        return with_alone(pairs, args), build
    torch.manual_seed(args.seed)
    return (begin_vae if args.base == "vae" else begin_base)(background.shape, args)


def begin_vae(shape, args):
    size = {"shape": list(shape), "latent_dim": args.latent_dim, "channels": args.channels}
    classes = {"VAE": (VAE, VAEGuide), "VMA": (VMA, VMAGuide)}
    build = {
        name: {"model": (f"{name}.convolutional", size), "guide": (f"{name}Guide.convolutional", size)}
        for name in classes
    }
    return {name: tuple(c.convolutional(**size) for c in pair) for name, pair in classes.items()}, build


def begin_base(shape, args):
    base, base_guide = BASES[args.base]
    embedding = {"shape": list(shape), "channels": args.channels}
    size = dict(embedding) if args.base == "diffusion" else {
        "shape": list(shape), "maps": args.maps, "layers": args.layers, "looks": args.looks
    }  # fmt: skip
    reading = size | {"reads": True}
    if args.base == "autoregressive":
        reading |= {"unread": args.unread, "code_dim": 1}  # it is told how many slots there are
    if args.lookup:
        embedding["channels"] = pretrained()[args.lookup].build["guide"][1]["channels"]
    guide = AddressedGuide.convolutional(base=base_guide(), **embedding)
    if args.lookup:
        guide.address.load_state_dict(load_pretrained(args.lookup)[1].address.state_dict())
        guide.address.requires_grad_(False)  # left to learn beside noisy steps, it sharpens until it is one slot
    alone, names = ALONE[args.base], (base.__name__, base_guide.__name__)
    pairs = {alone: (base(**size), base_guide()), "VMA": (Addressed(base(**reading)), guide)}
    base_guide = [names[1], {}]
    build = {
        alone: {"model": [names[0], size], "guide": base_guide},
        "VMA": {
            "model": ["Addressed", {"base": {"build": [names[0], reading]}}],
            "guide": ["AddressedGuide.convolutional", {"base": {"build": base_guide}, **embedding}],
        },
    }
    if reading.get("unread"):
        del pairs[alone], build[alone]
    return with_alone(pairs, args), build


def with_alone(pairs, args):
    """With the model without memory, where it is a part of the other: its base, which was told nothing at times."""
    if len(pairs) == 2:
        return pairs
    model, guide = pairs["VMA"]
    if not getattr(getattr(model, "base", None), "unread", 0):
        raise SystemExit(f"the weights {FILES[args.base][0]}-NAME of the model without memory are missing")
    return {ALONE[args.base]: (model.base, guide.base)} | pairs


def leave_weights(pairs, build, results, numbers, args):
    """Weights in half precision with a card each, ready for ``load_pretrained``."""
    for name in results:
        trained = f"{results[name].steps} steps of {args.batch} images, seed {args.seed}"
        if args.base == "vae":
            trained += f", K = {PARTICLES}"
        elif args.base == "autoregressive" and not args.lookup:
            trained += f", its address {args.address}" + f" (K = {args.reads})" * (args.address == "sampled")
        elif args.lookup and name == "VMA":
            trained += f", the address that of {args.lookup}, held"
        if args.start:
            trained += f", from the weights of the {name} of {args.start} on"
        if args.turned:
            trained += f", {args.turned:.0%} of the tasks turned or mirrored"
        if name == "VMA":
            most = (
                f"{' to '.join(map(str, n))} {what}" for n, what in ((args.classes, "classes"), (args.shots, "each"))
            )
            trained += f", memories of {' of '.join(most)}"
        if args.recalled:
            trained += f", {args.recalled:.0%} of the targets in memory"
        if args.varied:
            trained += f", {args.varied:.0%} redrawn as another hand might"
        facts = {
            "about": f"{name}{OVER[args.base] if name == 'VMA' else ''} trained on {args.data}",
            "data": f"{args.data}, background classes; measured on {args.test_on} classes",
            "licence": LICENCES[args.data],
            "protocol": f"{PROTOCOLS[args.protocol]}; {args.evaluate} targets, "
            + ("exact" if args.base == "autoregressive" else f"K = {args.particles}"),
            "numbers": numbers[name],
            "training": trained,
        }
        file = f"{files(args)[name]}-{args.name or args.data}"
        card = save_pretrained(file, *pairs[name], build=build[name], facts=facts, folder=args.out / "weights")
        print(f"\n{card}" if args.name else f"weights of the {name}: {args.out / 'weights' / file}.safetensors")
