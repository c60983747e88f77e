"""Is the uncertainty of a conversion real?

Two checks on synthetic episodes. (a) An amortised guide of conversion, trained by SVI, against the exact posterior, by
how far apart the clusters lie. (b) Simulation-based calibration: means and precisions of two concepts are drawn from
their prior, episodes from them, and the guide is a store that takes each in with the responsibilities that it gives it
itself, under each rule of conversion; twice, responsibilities revised once all are seen (expectation propagation); or
all together, under 64 hypotheses of who went where. If its beliefs are right, ranks of the true means in them are
uniform and 90% intervals hold 90% of the truths. Writes conversion.json and conversion.png to --out.

    python benchmarks/conversion.py

References: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
https://arxiv.org/abs/1804.06788
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO

from pyro_memory import ConceptMemory, assign, calibrate, exact_posterior, fit
from pyro_memory.guides import ConsolidationGuide
from pyro_memory.models import ConsolidationModel

SEPARATIONS = (8.0, 4.0, 2.0, 1.0)
RULES = ("projected", "fractional", "hard", "revised", "together")
KAPPA, ALPHA, BETA = 4.0, 20.0, 20.0  # precisions near 1, means within half a deviation of their prior's
TIMESCALE = 10.0


def two_concepts(separation, dim=1):
    """A store of two concepts that differ in their prior means only, so that labels cannot change places."""
    loc = torch.tensor([[-separation / 2], [separation / 2]]).expand(2, dim).contiguous()
    same = torch.ones_like(loc)
    return ConceptMemory(loc, KAPPA * same, ALPHA * same, BETA * same, torch.zeros(2))


def truth(store, generator):
    """Means and precisions drawn from the store's prior."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    tau = dist.Gamma(store.alpha, store.beta).sample()
    return dist.Normal(store.loc, (store.kappa * tau).rsqrt()).sample(), tau


def draw(mu, tau, count):
    label = torch.arange(count) % len(mu)
    label = label[torch.randperm(count)]
    return dist.Normal(mu[label], tau[label].rsqrt()).sample(), label


def belief(store):
    """What a store holds of means and precisions."""
    with pyro.plate("concept", len(store.loc)):
        tau = pyro.sample("tau", dist.Gamma(store.alpha, store.beta).to_event(1))
        return pyro.sample("mu", dist.Normal(store.loc, (store.kappa * tau).rsqrt()).to_event(1)), tau


def revised(store, e, sweeps=3):
    """Expectation propagation: what each episode said is taken out again and said anew beside all the others."""
    start = store
    said = torch.zeros(len(e), *store.posterior.natural().shape, dtype=torch.float64)
    shares, nothing = torch.zeros(len(e), 2), torch.zeros(1, 1)
    for n in list(range(len(e))) * sweeps:
        natural = start.posterior.natural() + said.sum(0) - said[n]
        without = type(start.posterior).of_natural(natural)
        if not all(bool((t > 0).all()) for t in without[1:]):
            continue  # no distribution is left without it: it stays as it was
        counts = start.counts + shares.sum(0) - shares[n]
        there = replace(start, **{k: t.float() for k, t in without._asdict().items()}, counts=counts.clamp(min=0))
        one = e[n : n + 1]
        shares[n] = there.responsibilities(one, nothing)[0]
        store = there.update(one, nothing, shares[n : n + 1])
        said[n] = store.posterior.natural() - natural
    return store


def calibration(separation, rule, args):
    """True means and precisions, ranked in what the store believes once it has taken in their episodes."""
    order = torch.randperm(args.episodes, generator=torch.Generator().manual_seed(args.seed))
    label = order % 2

    def model(e):
        mu, tau = belief(two_concepts(separation))
        with pyro.plate("episode", len(e)):
            pyro.sample("e", dist.Normal(mu[label], tau[label].rsqrt()).to_event(1), obs=e)

    def guide(e):
        store = two_concepts(separation)
        if rule == "together":
            store, _ = assign(store, e, torch.zeros_like(e), hypotheses=64)
        elif rule == "revised":
            store = revised(store, e)
        else:
            for one in e.split(1):
                nothing = torch.zeros_like(one)
                store = store.update(one, nothing, store.responsibilities(one, nothing), rule=rule)
        belief(store)

    options = {"simulations": args.simulations, "draws": 999, "seed": args.seed, "progress": True}
    return calibrate(model, guide, torch.zeros(args.episodes, 1), **options)


def amortised(args):
    """KL(q || exact) on episodes that the guide has not seen, before and after training, by separation."""
    dim, generator = 4, torch.Generator().manual_seed(args.seed)

    def world(separation):
        store = two_concepts(separation / math.sqrt(dim), dim)
        mu, tau = truth(store, generator)
        e, label = draw(mu, tau, 30)
        store = store.update(e, torch.zeros_like(e), torch.nn.functional.one_hot(label, 2).float())
        grown = torch.cat([store.loc, torch.zeros(1, dim)])
        others = [
            torch.cat([t, torch.full((1, dim), v)])
            for t, v in ((store.kappa, 0.1), (store.alpha, 2.0), (store.beta, 1.0))
        ]
        store = ConceptMemory(
            grown, *others, torch.cat([store.counts, torch.zeros(1)]), prior_beta=1.0
        )  # and an empty one
        e, _ = draw(mu, tau, 64)
        variance = 0.2 * torch.rand(64, dim, generator=generator)
        return store, e, variance, torch.randint(1, 40, (64,), generator=generator)

    model, guide = ConsolidationModel(TIMESCALE), ConsolidationGuide(timescale=TIMESCALE)
    tests = {s: [world(s) for _ in range(20)] for s in SEPARATIONS}

    @torch.no_grad()
    def distance():
        rows = {}
        for separation, worlds in tests.items():
            p = torch.cat([exact_posterior(*w, TIMESCALE) for w in worlds])
            q = torch.cat([guide.probabilities(*w) for w in worlds])
            kl = torch.where(q > 0, q * (q.log() - p.clamp(min=1e-38).log()), 0).sum(-1)
            doubt = -torch.special.xlogy(p, p).sum(-1)
            rows[separation] = {
                "kl": kl.mean().item(), "se": (kl.std() / math.sqrt(len(kl))).item(), "entropy": doubt.mean().item()
            }  # fmt: skip
        return rows

    before = distance()
    fit(
        model, guide, lambda step: world(SEPARATIONS[step % len(SEPARATIONS)]), TraceEnum_ELBO(max_plate_nesting=1),
        steps=args.steps, learning_rate=5e-3, schedule=lambda step: 0.5 * (1 + math.cos(math.pi * step / args.steps)),
        seed=args.seed, information_every=None,
    )  # fmt: skip
    return before, distance()


def plot(record, path):
    fig = plt.figure(figsize=(14, 6.5), layout="constrained")
    axes = fig.subplot_mosaic([[*SEPARATIONS], ["left", "left", "right", "right"]])
    edges = [i / 20 for i in range(21)]
    for separation in SEPARATIONS:
        ax = axes[separation]
        for rule in RULES:
            counts = record["ranks"][rule][str(separation)]
            ax.stairs(counts, edges, label=rule)
        ax.axhline(sum(counts) / 20, color="0.6", linestyle="--", linewidth=0.8)
        ax.set(title=f"{separation:g} deviations apart", xlabel="rank of the true mean", ylabel="truths")
    axes[SEPARATIONS[0]].legend(frameon=False, loc="lower center")
    places, left, right = range(len(SEPARATIONS)), axes["left"], axes["right"]
    for rule in RULES:
        rows = [record["coverage"][rule][str(s)] for s in SEPARATIONS]
        left.errorbar(places, [r["mean"] for r in rows], [2 * r["se"] for r in rows], marker="o", capsize=3, label=rule)
    left.axhline(0.9, color="0.6", linestyle="--", linewidth=0.8)
    left.set(ylabel="truths in the 90% interval", title="Coverage (two standard errors)")
    for name, style in (("before", "--"), ("after", "-")):
        rows = [record["amortised"][name][str(s)] for s in SEPARATIONS]
        kl, errors = [r["kl"] for r in rows], [2 * r["se"] for r in rows]
        right.errorbar(places, kl, errors, marker="o", linestyle=style, label=f"KL(q || exact) {name} training")
    doubt = [record["amortised"]["after"][str(s)]["entropy"] for s in SEPARATIONS]
    right.plot(places, doubt, color="0.6", label="entropy of the exact posterior")
    right.set(ylabel="nats an episode", yscale="log", title="Amortised conversion against the exact posterior")
    for ax in (left, right):
        ax.set_xticks(places, [f"{s:g}" for s in SEPARATIONS])
        ax.set_xlabel("separation of the clusters, deviations")
        ax.legend(frameon=False)
    fig.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/conversion"), metavar="DIR")
    parser.add_argument("--simulations", type=int, default=150, metavar="N", help="truths drawn a cell (default 150)")
    parser.add_argument("--episodes", type=int, default=40, metavar="N", help="episodes a truth (default 40)")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="of the guide's training (default 1500)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print("training the amortised guide of conversion")
    before, after = amortised(args)
    print(f"\n{'separation':>12}{'KL before':>12}{'KL after (se)':>20}{'exact entropy':>16}")
    for s in SEPARATIONS:
        row = after[s]
        print(f"{s:>12g}{before[s]['kl']:>12.3f}{row['kl']:>12.4f} ({row['se']:.4f}){row['entropy']:>15.3f}")
    found = {(rule, s): calibration(s, rule, args)["mu"] for rule in RULES for s in SEPARATIONS}
    table = {
        rule: {str(s): dict(zip(("mean", "se"), found[rule, s].coverage(0.9), strict=True)) for s in SEPARATIONS}
        for rule in RULES
    }
    for (rule, s), site in found.items():
        print(f"{rule}, {s:g} deviations apart: {site.verdict}")
    print(
        "\ntruths in the 90% interval (standard error), by separation\n"
        + " " * 12
        + "".join(f"{s:>16g}" for s in SEPARATIONS)
    )
    for rule, row in table.items():
        print(f"{rule:<12}" + "".join(f"{row[str(s)]['mean']:>9.3f} ({row[str(s)]['se']:.3f})" for s in SEPARATIONS))
    ranked = {r: {str(s): found[r, s].ranks.flatten().histc(20, 0, 1).tolist() for s in SEPARATIONS} for r in RULES}
    record = {
        "ranks": ranked, "arguments": {k: v for k, v in vars(args).items() if k != "out"}, "torch": torch.__version__,
        "seconds": time.perf_counter() - start, "coverage": table,
        "amortised": {n: {str(s): v for s, v in rows.items()} for n, rows in (("before", before), ("after", after))},
    }  # fmt: skip
    (args.out / "conversion.json").write_text(json.dumps(record, indent=1))
    plot(record, args.out / "conversion.png")
    print(f"\nconversion.json and conversion.png are in {args.out} ({record['seconds']:.0f} s)")


if __name__ == "__main__":
    main()
