"""What the experiments share: options typed by their defaults, records, runs that go on."""

import json
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule

from pyro_memory.guides import EmptyGuide

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "experiments"))
import study


def parser(out):
    return study.options(
        "doc", out, steps=(10, "steps"), rate=(0.5, "rate"), shots=([1, 2], "shots"), base=(("vae", "flow"), "base"),
        no_replay=(False, "switch"), start=(None, "weights"),
    )  # fmt: skip


def test_an_option_has_the_type_of_its_default(tmp_path):
    args = parser(tmp_path).parse_args([])
    assert (args.steps, args.rate, args.shots, args.base) == (10, 0.5, [1, 2], "vae")
    assert (args.no_replay, args.start, args.seed, args.fresh, args.device) == (False, None, 0, False, "cpu")
    words = "--steps 3 --rate 2 --shots 4 5 --base flow --no-replay --start omniglot28 --data glyphs"
    args = parser(tmp_path).parse_args(words.split())
    assert (args.steps, args.rate, args.shots, args.base) == (3, 2.0, [4, 5], "flow")
    assert (args.no_replay, args.start) == (True, "omniglot28")
    with pytest.raises(SystemExit):
        parser(tmp_path).parse_args(["--steps", "1.5"])
    with pytest.raises(SystemExit):
        parser(tmp_path).parse_args(["--base", "gan"])


def test_a_record_tells_the_arguments_that_count_and_prints_its_table(tmp_path, capsys):
    args = parser(tmp_path).parse_args(["--steps", "3"])
    study.leave({"bounds": {5: 1.0}}, args, lambda record, recipe: f"table of {record['bounds']['5']}", unused={"rate"})
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["bounds"] == {"5": 1.0}
    assert record["arguments"]["steps"] == 3
    assert not {"rate", "out", "fresh", "data_dir"} & set(record["arguments"])
    assert "table of 1.0" in capsys.readouterr().out


class Level(PyroModule):
    def __init__(self):
        super().__init__("level")
        self.mean = torch.nn.Parameter(torch.zeros(()))

    def forward(self, y):
        with pyro.plate("batch", len(y)):
            pyro.sample("y", dist.Normal(self.mean, 1.0), obs=y)


def test_a_run_goes_on_from_out_unless_it_is_fresh(tmp_path):
    def run(steps, *words):
        args = parser(tmp_path).parse_args(["--steps", str(steps), *words])
        model = Level()
        objective = Trace_ELBO(max_plate_nesting=1)
        batches = [(torch.ones(8),)]
        result = study.train("level", model, EmptyGuide(), batches, objective, args, learning_rate=0.1, schedule=None)
        assert not model.training
        return result, model.mean.item()

    first, half = run(5)
    assert first.checkpoint == tmp_path / "level.safetensors"
    whole, far = run(10)
    assert whole.steps == 10
    assert far > half
    again, same = run(10)
    assert (again.steps, same) == (10, far)
    _, anew = run(5, "--fresh")
    assert anew == pytest.approx(half, abs=1e-6)
