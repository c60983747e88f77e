"""A memory of a million drawings: how many nats does each further decade of slots give, and how many must be read?

Trains a VAE without memory and a VMA that reads 4,096 drawings, for equal steps, or takes the weights that come with
the package. Then puts all background drawings in one memory in a file, and more of them, varied by small affine maps,
up to 10^6; measures unseen drawings against 10^2 to 10^6 of its slots; and compares the nearest k slots with the exact
address. How sharp the address is, so that at most 256 slots stand in for all, and k, are chosen for each size on other
drawings. Targets are letters that nobody has drawn in the memory. Writes results.json and summary.png to --out; run it
again to go on from there.

    python benchmarks/experiments/vma_large.py
    python benchmarks/experiments/vma_large.py --data omniglot --data-dir FOLDER --pretrained omniglot28
"""

import math

import matplotlib.pyplot as plt
import torch
from study import leave, mean_se, options, train
from tables_images import large_nearest, large_sharpness, large_sizes
from torch.nn import functional

import pyro_memory as pm
from pyro_memory.data import FewShotTasks, load_images
from pyro_memory.guides import VAEGuide, VMAGuide
from pyro_memory.models import VAE, VMA

NEAREST = (1, 4, 16, 64, 256)
SHARPNESS = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
TOLERANCE = 0.1  # nats
EPSILON = 1e-4  # share of the slots past the nearest


def arguments():
    return options(
        __doc__, "out/large",
        slots=(10**6, "slots of the largest memory"), pretrained=(None, "take vae-NAME and vma-NAME; train nothing"),
        steps=(800, "training steps of each model"), evaluate=(128, "targets of each kind"),
        particles=(200, "K of the bounds"), index=(("auto", "brute", "flat", "ivf", "hnsw"), "finds the nearest slots"),
    ).parse_args()  # fmt: skip


def trained(background, args):
    """The pairs, and how long their training took."""
    if args.pretrained:
        return {name: pm.load_pretrained(f"{name.lower()}-{args.pretrained}") for name in ("VAE", "VMA")}, {}
    size, shape = {"latent_dim": 32, "channels": [16, 32, 48]}, background.shape
    torch.manual_seed(args.seed)
    pairs = {
        "VAE": (VAE.convolutional(shape, **size), VAEGuide.convolutional(shape, **size)),
        "VMA": (VMA.convolutional(shape, **size), VMAGuide.convolutional(shape, **size)),
    }
    # A small network looks slots up, since it embeds all of them; the large ones see only what was read.
    pairs["VMA"][1].address = VMAGuide.mlp(shape, matching_dim=64).address
    tasks = FewShotTasks(background, classes=min(512, background.classes), shots=8, targets=32, seed=args.seed)
    seconds = {}
    for name, pair in pairs.items():
        print(f"\ntraining the {name}: {args.steps} steps of {tasks.targets} images", flush=True)
        result = train(name.lower(), *pair, tasks, pm.VIMCO(4, max_plate_nesting=1), args, learning_rate=2e-3)
        seconds[name] = result.seconds
    return pairs, seconds


def vary(images, generator):
    """New drawings of the same letters: small turns, shears, sizes and shifts, as another hand might."""
    noise = torch.randn(len(images), 6, generator=generator)
    turn, shear = 0.12 * noise[:, 0], 0.12 * noise[:, 1]
    rows = torch.stack([turn.cos(), shear - turn.sin(), turn.sin(), turn.cos()], -1).reshape(-1, 2, 2)
    affine = torch.cat([rows * (0.08 * noise[:, 2:4]).exp().unsqueeze(1), 0.07 * noise[:, 4:6].unsqueeze(-1)], -1)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return (functional.grid_sample(images, grid, align_corners=False) > 0.4).byte()


def drawings_in_a_file(data, address, args):
    """All drawings in random order, then varied ones up to --slots, and the embedded keys of all."""
    folder = args.out / f"memory-{args.slots}"
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.seed))
    try:
        memory = pm.MappedMemory.open(folder)
    except ValueError:
        memory = pm.MappedMemory.create(folder, data.shape)
        memory = memory.append(data.images[order[: args.slots]])
    if memory.keys is None:
        while memory.slots < args.slots:
            generator = torch.Generator().manual_seed(args.seed + memory.slots)
            chosen = torch.randint(len(data), (min(20_000, args.slots - memory.slots),), generator=generator)
            memory = memory.append(vary(data[chosen], generator))
    return memory.with_keys(address)


def bound(model, guide, x, memory, args):
    torch.manual_seed(args.seed)
    few = {"particles": args.particles, "max_plate_nesting": 1}
    return pm.BoundEstimate.cat([pm.importance_bound(model, guide, part, memory, **few) for part in x.split(64)])


def by_sharpness(model, guide, validation, memory, sizes, args):
    """For each size of memory how sharp the address is: of those that the nearest 256 slots stand in for, the best.

    A sharper address costs some of its own bound; a blunter one is best read whole.
    """
    rows, plain = [], guide.address
    for slots in sizes:
        part, index, bounds, gaps = memory.head(slots), pm.SlotIndex(args.index), [], []
        for sharpness in SHARPNESS:
            guide.address = pm.FrozenAddress(plain, sharpness=sharpness).eval()
            bounds.append(bound(model, guide, validation, part, args).mean)
            near = [pm.NearestAddress(guide.address, min(NEAREST[-1], slots), epsilon=EPSILON, index=index)]
            (pair,) = against_exact(model, guide, validation, part, guide.address, near, args)
            gaps.append(tuple(map(mean_se, pair)))
        lost = [min(mean - se for mean, se in pair) for pair in gaps]  # allowing for the noise of the comparison
        allowed = [i for i, loss in enumerate(lost) if loss > -TOLERANCE] or [lost.index(max(lost))]
        chosen = SHARPNESS[max(allowed, key=lambda i: bounds[i])]
        rows.append({"slots": slots, "sharpness": SHARPNESS, "bounds": bounds, "gaps": gaps, "chosen": chosen})
    guide.address = plain
    return rows


def by_size(pairs, x, memory, addresses, args):
    """Bounds and information for each size of memory, by the exact address."""
    model, guide = pairs["VMA"]
    vae, rows = bound(*pairs["VAE"], x, pm.SlotMemory(memory.head(1).values.float()), args), []
    for slots, address in addresses.items():
        guide.address, part = address, memory.head(slots)
        estimate = bound(model, guide, x, part, args)
        gain, se = pm.MemoryContribution(estimate, {"VAE": vae}).gain("VAE")
        info = pm.information_gain(model, guide, x, part, draws=2)
        row = {"slots": slots, "sharpness": address.sharpness, **estimate.to_dict(), "gain": gain, "gain_se": se}
        effective = info.addresses["a"].effective_slots
        rows.append(row | {"vae": vae.mean, "kl_a": info["a"].mean, "effective_slots": effective})
    return {"letters not in memory": rows}


def given_address(model, guide, x, memory, a, noise):
    """log p(x, z, a) - log q(z | a, x) for z made of the noise: a particle's log weight, but for log q(a | x)."""
    m = memory[a]
    content, q = model.content(m), guide.z_dist(x, m)
    z = q.base_dist.loc + q.base_dist.scale * noise
    log_p = model.a_dist(memory).log_prob(a) + model.z_dist(content).log_prob(z)
    return log_p + model.x_dist(z, content).log_prob(x) - q.log_prob(z)


@torch.no_grad()
def against_exact(model, guide, x, memory, exact, nearest, args):
    """Yields, for each nearest-k address, its ELBO and its bound of K particles minus the exact one's, by datum.

    Particles are coupled: one of the exact address that lies among the nearest serves both, and z has the same noise,
    so that the difference is not lost in the noise of either. Addresses' entropies are exact.
    """
    torch.manual_seed(args.seed)
    q, shape = exact(x, memory), (args.particles, len(x))
    a, noise = q.sample((args.particles,)), torch.randn(shape + guide.z_dist(x, x).event_shape)
    chunks = zip(a.split(20), noise.split(20), strict=True)
    value = torch.cat([given_address(model, guide, x, memory, part, eps) for part, eps in chunks])
    elbo, bound = value.mean(0) + q.entropy(), (value - q.log_prob(a)).logsumexp(0)
    for address in nearest:
        near = address(x, memory)
        fresh = near.sample((args.particles,))
        among = [(t.unsqueeze(-1) == near.best).any(-1) for t in (a, fresh)]
        own = torch.where(among[0] & among[1], a, fresh)  # distributed as near, and mostly a
        changed = (own != a).nonzero(as_tuple=True)
        new = value.clone()
        blocks = zip(*(index.split(2000) for index in changed), strict=True) if len(changed[0]) else ()
        for at in blocks:
            new[at] = given_address(model, guide, x[at[1]], memory, own[at], noise[at])
        yield new.mean(0) + near.entropy() - elbo, (new - near.log_prob(own)).logsumexp(0) - bound


def by_nearest(model, guide, validation, x, memory, addresses, args):
    """The bound by the nearest k slots against the exact one: k chosen on validation, then measured on test."""
    rows = []
    for slots, exact in addresses.items():
        part, index = memory.head(slots), pm.SlotIndex(args.index)
        nearest = [pm.NearestAddress(exact, k, epsilon=EPSILON, index=index) for k in NEAREST]
        pairs = against_exact(model, guide, validation, part, exact, nearest, args)
        gaps = [tuple(map(mean_se, pair)) for pair in pairs]
        within = [min(bound[0], elbo[0]) > -TOLERANCE for elbo, bound in gaps]
        place = within.index(True) if any(within) else len(NEAREST) - 1
        (pair,) = against_exact(model, guide, x, part, exact, nearest[place : place + 1], args)
        test, k = tuple(map(mean_se, pair)), NEAREST[place]
        recall = index.recall(exact.query_for(x).detach(), k)
        row = {"slots": slots, "validation": gaps, "chosen": k, "chosen_validation": gaps[place], "test": test}
        rows.append(row | {"recall": recall, "index": repr(index)})
    return rows


def draw(rows, nearest, originals, path):
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    (own,) = rows.values()
    errors = [2 * r["gain_se"] for r in own]
    left.errorbar([r["slots"] for r in own], [r["gain"] for r in own], errors, marker="o", capsize=3)
    left.axvline(originals, color="0.6", linestyle=":", label="all drawings; varied ones beyond")
    left.set(xscale="log", xlabel="slots in memory", ylabel="nats per image over a VAE without memory")
    left.set_title("What a larger memory gives (two standard errors)")
    left.legend(frameon=False)
    for row, colour in zip(nearest, ("#2f6f9f", "#d9822b", "#5a9a4a", "0.4"), strict=False):
        for part, line in ((1, "-"), (0, ":")):
            gap, se = zip(*(pair[part] for pair in row["validation"]), strict=True)
            label = f"{row['slots']:,} slots" if part else None
            style = {"fmt": line, "color": colour, "marker": "o", "capsize": 3, "label": label}
            right.errorbar(NEAREST, gap, [2 * s for s in se], **style)
    right.axhspan(-TOLERANCE, TOLERANCE, color="0.9", zorder=0, label=f"within {TOLERANCE} nats")
    right.set(xscale="log", xlabel="k, slots kept", ylabel="minus the exact address's, nats")
    right.set_yscale("symlog", linthresh=0.2)
    right.set_xticks(NEAREST, map(str, NEAREST))
    right.set_title("The nearest k slots: bound (line) and ELBO (dotted)")
    right.set_ylim(top=20)  # room for the legend
    right.legend(frameon=False, loc="upper left", ncols=2)
    fig.savefig(path, dpi=120)


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    background, evaluation = (load_images(args.data, split, args.data_dir) for split in ("background", "evaluation"))
    print(f"  memory and training: {background}\n  unseen letters: {evaluation}")
    pairs, seconds = trained(background, args)
    model, guide = pairs["VMA"]
    memory = drawings_in_a_file(background, guide.address, args)
    print(f"\n{memory}, of them {min(len(background), args.slots)} drawings as they are, in {memory.folder}")
    pick = torch.randperm(len(evaluation), generator=torch.Generator().manual_seed(args.seed + 1))[: 2 * args.evaluate]
    unseen, validation = evaluation[pick].chunk(2)
    sizes = sorted({n for n in (*(10**e for e in range(2, 7)), len(background), args.slots) if n <= args.slots})
    sharp = by_sharpness(model, guide, validation, memory, sizes, args)
    addresses = {row["slots"]: pm.FrozenAddress(guide.address, sharpness=row["chosen"]) for row in sharp}
    rows = by_size(pairs, unseen, memory, addresses, args)
    large = [n for n in sizes if n >= 10**4 and math.log10(n) % 1 == 0] or sizes[-1:]
    nearest = by_nearest(model, guide, validation, unseen, memory, {n: addresses[n] for n in large}, args)
    draw(rows, nearest, len(background), args.out / "summary.png")
    record = {"training_seconds": seconds, "by_sharpness": sharp, "by_size": rows, "by_nearest": nearest}
    leave(record, args, large_sharpness, large_sizes, large_nearest)


if __name__ == "__main__":
    main()
