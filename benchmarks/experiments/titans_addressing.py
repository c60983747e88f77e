"""Sequential addressing: how many nats does a neural memory save when it predicts which slot is read next?

The episodic memory holds a drawing of each of 16 letters. A sequence goes round a few of them again and again, in an
order drawn anew for each sequence, every time in another drawing. Nobody knows the first round; after it, a memory that
learned the order within the sequence knows what comes. A model and its guide are trained with a uniform prior over
addresses; then a prior p(a_t | x_<t) from a Titans state is trained for them, and nothing else. Draws what each lookup
costs under either.

    python benchmarks/experiments/titans_addressing.py
"""

import math
import warnings

import matplotlib.pyplot as plt
import torch
from pyro.infer import TraceEnum_ELBO
from study import leave, mean_se, options, train
from tables_titans import sequential

from pyro_memory import VIMCO, SlotMemory, information_gain
from pyro_memory.data import load_images
from pyro_memory.guides import TitansAddressingGuide
from pyro_memory.models import TitansAddressing

warnings.filterwarnings("ignore", message=".*because requires_grad=False.*")  # what is frozen here is meant to be


def arguments():
    return options(
        __doc__, "out/addressing",
        slots=(16, "letters in memory"), round=(6, "letters in a round"), rounds=(4, "rounds in a sequence"),
        steps=(1200, "steps of either run"), batch=(8, "sequences a step"), evaluate=(256, "sequences to measure"),
    ).parse_args()  # fmt: skip


def sequences(data, slots, around, rounds, count, seed):
    """``[count, rounds * around]`` drawings: members 0 are in memory, so the others are drawn."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.rand(count, slots, generator=generator).argsort(1)[:, :around].repeat(1, rounds)
    drawing = torch.randint(1, 20, letters.shape, generator=generator)
    members = torch.stack([m[:20] for m in data.members[:slots]])
    return data[members[letters, drawing]]


def run(name, args, model, guide, memory, draw, objective, batch):
    train(
        name, model, guide, lambda step: (draw(batch, args.seed * 1_000_003 + step), memory), objective, args,
        learning_rate=2e-3, schedule=lambda step: 0.05 + 0.95 * (1 - step / args.steps), clip_norm=None,
    )  # fmt: skip


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_images(args.data, "background", args.data_dir)
    memory = SlotMemory(data[torch.stack([m[0] for m in data.members[: args.slots]])])

    def draw(count, seed):
        return sequences(data, args.slots, args.round, args.rounds, count, seed)

    held_out = draw(args.evaluate, 10**9 + args.seed)
    costs, gains, record = {}, {}, {}
    torch.manual_seed(args.seed)
    uniform = TitansAddressing.mlp(data.shape, sequential=False)
    titans = TitansAddressing.mlp(data.shape, chunk_size=4, persistent=0)
    guide = TitansAddressingGuide.mlp(data.shape)
    run("uniform", args, uniform, guide, memory, draw, TraceEnum_ELBO(max_plate_nesting=2), args.batch)
    titans.content, titans.likelihood = uniform.content, uniform.likelihood
    titans.embed.features = titans.address.key.features = guide.address.query.features
    for part in (uniform, guide):  # what follows trains the prior alone: all else stays the same
        part.requires_grad_(False)
    run("titans", args, titans, guide, memory, draw, VIMCO(2, max_plate_nesting=2), 4 * args.batch)
    for name, model in (("uniform prior", uniform), ("Titans prior", titans)):
        model.eval()
        with torch.no_grad():
            costs[name] = -torch.cat([model.log_evidence(x, memory) for x in held_out.split(32)])
        gain = information_gain(model, guide, held_out, memory, draws=1, max_plate_nesting=2)
        gains[name] = gain["a"].kl.reshape(costs[name].shape)
        total, se = mean_se(costs[name].sum(1))
        print(f"\n{name}: -log p(x_1..T) = {total:.2f} +- {se:.2f} nats a sequence")
        record[name] = {"nats": total, "se": se, "nats_by_step": costs[name].mean(0).tolist()}
        record[name]["information_by_step"] = gains[name].mean(0).tolist()

    saved = (costs["uniform prior"] - costs["Titans prior"]).sum(1)
    record["saved"] = dict(zip(("nats", "se"), mean_se(saved), strict=True))
    print(f"\nsaved by the Titans prior: {record['saved']['nats']:.2f} +- {record['saved']['se']:.2f} nats a sequence")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    step = range(1, args.round * args.rounds + 1)
    for name, gain in gains.items():
        left.errorbar(step, gain.mean(0), 2 * gain.std(0) / math.sqrt(len(gain)), label=name, capsize=2)
    left.axhline(math.log(args.slots), color="0.5", linestyle="--", label=f"log {args.slots}")
    left.set(ylabel="KL(q(a | x) || p(a | before)), nats", title="What each lookup tells")
    per_step = costs["uniform prior"] - costs["Titans prior"]
    right.errorbar(step, per_step.mean(0), 2 * per_step.std(0) / math.sqrt(len(per_step)), color="C2", capsize=2)
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set(ylabel="nats saved", title="log p(x_t | before): Titans minus uniform prior")
    for ax in (left, right):
        ax.set_xlabel("step of the sequence")
        for i in range(1, args.rounds):
            ax.axvline(i * args.round + 0.5, color="0.85", zorder=0)
    left.legend(frameon=False)
    figure.savefig(args.out / "addressing.png", dpi=120)
    leave(record, args, sequential)


if __name__ == "__main__":
    main()
