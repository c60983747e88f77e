"""One training step of a language model on one CPU thread, whatever mixes its tokens.

Forward, backward and Adam of 6 blocks, 256 wide, at 2,048 tokens of 256 kinds, batch 1: this package's mixers, with
chunks, segments and windows of 64; titans-pytorch's MemoryAsContextTransformer with segments of 64, a memory of the
same heads, depth and expansion in each layer, and its default rule (one step a chunk, gradients at the initial
weights); and a transformer that attends to all tokens before by ``F.scaled_dot_product_attention``. The feed-forward
layers are as wide as it takes for all to have equally many parameters. Each case runs in a process of its own;
processor time, median of the steps after the first, and the peak of resident memory over that before the first step.

Writes mixers_cpu.json and mixers_cpu.png to --out.

    python benchmarks/mixers_cpu.py
"""

import argparse
import importlib.util
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from records import about

DIM, BLOCKS, HEADS, CHUNK, VOCABULARY, PERSISTENT = 256, 6, 4, 64, 256, 16
OURS = ("TitansMAC", "TitansMAG", "TitansMAL", "TitansLMM", "TransformerMixer")
PEER, FULL = "titans-pytorch, MAC, frozen", "transformer, full attention"


def full_attention(dim):
    import torch
    from torch import nn
    from torch.nn import functional as F

    class FullAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

        def forward(self, x, state=None, lengths=None):
            q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).unbind(2)
            frequencies = 10_000.0 ** -torch.linspace(0, 1, q.shape[-1] // 2)
            angle = (torch.arange(x.shape[1])[:, None] * frequencies).unsqueeze(1)

            def turned(t):
                a, b = t.chunk(2, -1)
                return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

            q, k, v = (t.transpose(1, 2) for t in (turned(q), turned(k), v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.to_out(y.transpose(1, 2).flatten(2)), state

    return FullAttention()


def peer(parameters):
    from titans_pytorch import MemoryAsContextTransformer, MemoryMLP

    def make(mult):
        return MemoryAsContextTransformer(
            num_tokens=VOCABULARY, dim=DIM, depth=BLOCKS, segment_len=CHUNK, num_persist_mem_tokens=PERSISTENT,
            heads=HEADS, dim_head=DIM // HEADS, ff_mult=mult,
            neural_memory_model=MemoryMLP(DIM // HEADS, depth=2, expansion_factor=4.0),
            neural_memory_kwargs={"dim_head": DIM // HEADS, "heads": HEADS},
        )  # fmt: skip

    def size(model):
        return sum(p.numel() for p in model.parameters())

    narrow, wide = size(make(1)), size(make(2))
    model = make(max(0.1, 1 + (parameters - narrow) / (wide - narrow)))
    for p in model.parameters():
        p.data = p.data.clone()  # some are expanded, which an optimizer cannot write to
    return model


def build(case, parameters):
    from pyro_memory import models

    if case == PEER:
        model = peer(parameters)
        return model, lambda x: model(x, return_loss=True)
    mixer = full_attention
    if case in OURS:
        options = {"heads": HEADS}
        if case != "TransformerMixer":
            options |= {"chunk_size": CHUNK, "persistent": PERSISTENT}
        if case == "TitansMAC":
            options["segment"] = CHUNK
        elif case != "TitansLMM":
            options["window"] = CHUNK
        mixer = partial(getattr(models, case), **options)
    model = models.SequenceModel.tokens(VOCABULARY, mixer, dim=DIM, blocks=BLOCKS, parameters=parameters)
    return model, lambda x: -model.x_dist(x).log_prob(x).mean()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case, tokens, parameters, steps):
    """Seconds of one step and added MB; runs in its own process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss_of = build(case, parameters)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, before, parts = torch.randint(VOCABULARY, (1, tokens)), peak(), []
    for _ in range(steps + 1):
        clock = [time.process_time()]
        loss = loss_of(x)
        clock.append(time.process_time())
        loss.backward()
        clock.append(time.process_time())
        optimizer.step()
        optimizer.zero_grad()
        clock.append(time.process_time())
        parts.append([b - a for a, b in itertools.pairwise(clock)])
    forward, backward, adam = (statistics.median(p) for p in zip(*parts[1:], strict=True))
    seconds = statistics.median(map(sum, parts[1:]))
    return {
        "case": case, "tokens": tokens, "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 3), "forward": round(forward, 3), "backward": round(backward, 3),
        "adam": round(adam, 3), "mb": round(peak() - before),
    }  # fmt: skip


def draw(rows, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
    names = [r["case"] for r in rows][::-1]
    for ax, key, label in zip(axes, ("seconds", "mb"), ("seconds a training step", "MB added"), strict=True):
        values = [r[key] for r in rows][::-1]
        bars = ax.barh(names, values, color=["C0" if name in OURS else "C7" for name in names])
        ax.bar_label(bars, [f"{v:,.1f}" if key == "seconds" else f"{v:,.0f}" for v in values], padding=3)
        ax.set(xlabel=label, xlim=(0, 1.15 * max(values)))
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path / "mixers_cpu.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="of the sequence (default 2048)")
    parser.add_argument("--parameters", type=int, default=8_000_000, help="of each model (default 8 million)")
    parser.add_argument("--steps", type=int, default=3, help="steps after the first (default 3)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/mixers_cpu"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case, args.tokens, args.parameters, args.steps)))
        return
    cases, rows = [*OURS, PEER, FULL], []
    if importlib.util.find_spec("titans_pytorch") is None:
        print(f"{PEER}: skipped, it is not installed (pip install titans-pytorch)")
        cases.remove(PEER)
    options = [f"--{name}={getattr(args, name)}" for name in ("tokens", "parameters", "steps")]
    for case in cases:
        command = [sys.executable, __file__, "--case", case, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{case}: stopped ({done.stderr.strip()[-200:]})")
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "mixers_cpu.json").write_text(json.dumps(about() | {"rows": rows}, indent=1) + "\n")
    draw(rows, args.out)


if __name__ == "__main__":
    main()
