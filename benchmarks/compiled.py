"""Mixers under torch.compile(fullgraph=True) on a CPU thread: seconds to start, graphs, and time against eager.

For each mixer (dim 128, 4 heads, batch 2): forward and backward of --tokens tokens, eager and compiled by turns, and a
streamed token likewise, in milliseconds of processor time (medians); the graphs that five lengths take, and the seconds
until the first is there. Then --steps steps (at least 20) of a small sequence model of each on characters of the
standard library's prose, in float32 and under autocast to bfloat16, from the same start: the mean loss of the last
tenth, nats a character.
Writes compiled.json to --out.

    python benchmarks/compiled.py
"""

import argparse
import json
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from records import about

from pyro_memory.data import CharacterText, load_text
from pyro_memory.models import NeuralMemory, SequenceModel, TitansLMM, TitansMAC, TitansMAG, TitansMAL

MIXERS = {"memory": NeuralMemory, "LMM": TitansLMM, "MAL": TitansMAL, "MAG": TitansMAG, "MAC": TitansMAC}
DIM = 128


def timed(calls, repeats):
    """Median milliseconds of processor time of each, by turns, after one round that is not counted."""
    seconds = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if i:
                seconds[name].append(time.process_time() - start)
    return {name: round(1000 * statistics.median(s), 3) for name, s in seconds.items()}


def measure(name, tokens, repeats):
    torch.manual_seed(0)
    torch._dynamo.reset()
    mixer, x = MIXERS[name](DIM, heads=4), torch.randn(2, tokens, DIM)
    row = {"mixer": name, "tokens": tokens}
    compiled, step = torch.compile(mixer, fullgraph=True, dynamic=True), torch.compile(mixer.step, fullgraph=True)

    def train(call, x=x):
        call(x)[0].square().mean().backward()

    start = time.perf_counter()
    train(compiled)
    row["seconds_to_start"] = round(time.perf_counter() - start, 1)
    row["train_ms"] = timed({"eager": lambda: train(mixer), "compiled": lambda: train(compiled)}, repeats)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for length in (tokens // 2, tokens // 2 + 7, tokens - 3, tokens // 4, tokens + 5):
        train(compiled, torch.randn(2, length, DIM))
    row["graphs_more_at_five_lengths"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    with torch.no_grad():
        state = mixer.initial_state(2)
        start = time.perf_counter()
        _, state = step(x[:, 0], state)
        row["seconds_to_start_step"] = round(time.perf_counter() - start, 1)
        for t in range(1, 40):
            _, state = step(x[:, t], state)
        calls = {"eager": lambda: mixer.step(x[:, 0], state), "compiled": lambda: step(x[:, 0], state)}
        row["step_ms"] = timed(calls, 100)
    print(row, flush=True)
    return row


def losses(name, steps, autocast):
    """Nats a character, the mean of the last tenth of the steps and its standard error."""
    torch.manual_seed(0)
    text = CharacterText(load_text())
    mixer = partial({"memory": TitansLMM}.get(name, MIXERS[name]), heads=2)
    model = SequenceModel.tokens(len(text.vocabulary), mixer, dim=32, blocks=1)
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    batches, seen = text.batches("train", length=64, batch=8), []
    for i in range(steps):
        (x,) = batches[i]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = -model.x_dist(x).log_prob(x).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    last = seen[-steps // 10 :]
    return round(statistics.mean(last), 4), round(statistics.stdev(last) / len(last) ** 0.5, 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=list(MIXERS))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="of training in either precision; 0 for none")
    parser.add_argument("--out", type=Path, default=Path("out/compiled"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.compiler.config.force_disable_caches = True  # of runs before
    torch.set_num_threads(1)
    rows = []
    for name in args.mixers:
        rows.append(measure(name, args.tokens, args.repeats))
        if args.steps:
            rows[-1]["nats"] = {p: losses(name, args.steps, p == "bfloat16") for p in ("float32", "bfloat16")}
            print(name, rows[-1]["nats"], flush=True)
    record = about() | {"rows": rows}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compiled.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
