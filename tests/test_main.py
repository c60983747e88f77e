"""The command line: what it says of this machine and of a file, and how it fails."""

import importlib.metadata
import subprocess
import sys
from itertools import pairwise

import pytest
import set_parts
import torch
from conftest import ink
from rebuilt_pairs import PAIRS, SHAPE
from torch import nn

from pyro_memory import VIMCO, Card, SlotMemory, __version__, fit, pretrained, rebuildable, save, save_pretrained
from pyro_memory.__main__ import main
from pyro_memory.cards import FACTS
from pyro_memory.guides import EmptyGuide
from pyro_memory.training import save_checkpoint


@rebuildable
class Net(nn.Module):
    def __init__(self, *sizes, bias=(True,), options=None, kind=None, start=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.scale = nn.Parameter(torch.ones(1))


def said(capsys, *arguments):
    assert main(arguments) == 0
    return capsys.readouterr().out


def rows(text):
    """What is said of each name."""
    lines = [line.strip().partition("  ") for line in text.splitlines()[1:]]
    return {name: told.strip() for name, _, told in lines if told}


def test_it_tells_versions_devices_extras_and_weights(capsys, monkeypatch):
    monkeypatch.setenv("PYRO_MEMORY_DATA", "/somewhere")
    text = said(capsys)
    assert text.startswith(f"pyro-memory {__version__}\n")
    told = rows(text)
    assert told["torch"] == torch.__version__
    assert told["pyro"] == importlib.metadata.version("pyro-ppl")
    assert told["devices"].startswith("CPU (1 thread)")
    assert told["PYRO_MEMORY_DATA"] == "/somewhere"
    assert all(f"\n  {name} " in text for name in pretrained())


@pytest.mark.parametrize("missing", ["faiss-cpu", "triton", "pandas"])
def test_what_is_not_installed_is_told_with_the_remedy(capsys, monkeypatch, missing):
    version = importlib.metadata.version

    def of(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("importlib.metadata.version", of)
    text = said(capsys)
    remedy = {"faiss-cpu": "pyro-memory[scale]", "triton": "not installed", "pandas": "pyro-memory[tables]"}
    assert remedy[missing] in text


def test_gpus_are_told_by_name(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
    assert rows(said(capsys))["devices"] == "CPU (1 thread), card 0, card 1"


def test_a_checkpoint_tells_its_step_its_pair_its_stores_and_its_bound(capsys, tmp_path):
    path = tmp_path / "run.safetensors"
    model, guide = PAIRS["VMA"][0]()
    guide.encoder.requires_grad_(False)
    memory = SlotMemory(ink(5, *SHAPE))
    result = fit(
        model, guide, [(ink(3, *SHAPE),)], VIMCO(), steps=13, further=(memory,), checkpoint=path, information_every=6,
        progress=False,
    )  # fmt: skip
    text = said(capsys, "info", str(path))
    assert text.startswith(f"{path}: a checkpoint\n")
    told = rows(text)
    assert told["step"] == "13"
    assert told["model"] == "VMA.convolutional(shape=(1, 8, 8), latent_dim=3, channels=(4, 5))"
    assert told["optimizer"] == "Adam"
    assert told["stores"] == "SlotMemory"
    assert told["bound"] == f"{result.bounds[-1]:.3f} nats per datum (mean of the last steps)"
    assert "nats per datum" in told["information"]
    pair = torch.nn.ModuleList([model, guide])
    parameters = sum(t.numel() for t in [*pair.parameters(), *pair.buffers()])  # what both share counts once
    assert told["weights"].startswith(f"{parameters:,} numbers")
    assert told["model.prior"] == str(sum(p.numel() for p in model.prior.parameters()))
    assert told["frozen"].endswith("the first guide.encoder.features.stem.weight")


def test_a_pair_tells_what_it_shares_and_what_was_set(capsys, tmp_path):
    model, guide = set_parts.pair()
    model.recall.fixed = True
    text = said(capsys, "info", str(save(tmp_path / "pair.safetensors", model, guide, set_parts.stores())))
    assert "a pair" in text
    assert "  shared recall       Recall(shape=(1, 9, 7), dim=3, code_dim=4, channels=(4, 5), hidden=8)" in text
    assert "recall=recall" in text
    assert "model.recall.fixed  set to True" in text
    assert rows(text)["stores"] == "StructuredMemory"


def test_calls_are_written_as_python_writes_them(capsys, tmp_path):
    net = Net(2, 3, bias=(True,), options={"a": [1, None]}, kind=nn.ReLU, start=torch.zeros(2))
    text = said(capsys, "info", str(save(tmp_path / "pair.safetensors", net, EmptyGuide())))
    assert "Net(2, 3, bias=(True,), options={'a': [1, None]}, kind=torch.nn.ReLU, start=a tensor)" in text
    assert rows(text)["model"].startswith("Net(")
    assert rows(text)["model itself"] == "1"
    model = PAIRS["tokens, TitansLMM"][0]()
    text = said(capsys, "info", str(save(tmp_path / "pair.safetensors", *model)))
    assert "mixer=partial(TitansLMM, heads=2, chunk_size=4)" in text


def test_what_cannot_be_built_again_says_why(capsys, tmp_path):
    path = save_checkpoint(tmp_path / "run.safetensors", nn.Linear(2, 2), lambda: None, record={"note": "n" * 300})
    text = said(capsys, "info", str(path))
    assert "`guide` is the function <lambda>" in text
    assert "note nnn" in text
    assert text == said(capsys, "info", f"{path}.json")  # the summary beside it
    assert max(map(len, text.splitlines())) < 260


def test_a_card_tells_its_facts_by_file_and_by_name(capsys, tmp_path):
    facts = dict.fromkeys(FACTS, "x") | {"numbers": {"bound": "-1.0 (0.1)"}}
    card = save_pretrained("small", *PAIRS["VAE"][0](), facts=facts, folder=tmp_path)
    assert isinstance(card, Card)
    texts = {said(capsys, "info", str(tmp_path / f"small{end}")) for end in (".json", ".safetensors")}
    assert len(texts) == 1
    text = texts.pop()
    assert "bound -1.0 (0.1)" in text
    assert "VAE.convolutional(shape=(1, 8, 8)" in text
    shipped = said(capsys, "info", "vsm-vae-omniglot")
    assert "VSM over a vae base" in shipped
    assert "memory" in rows(shipped)


@pytest.mark.parametrize(("file", "message"), [
    ("nothing", "`FILE` must be a file, or a name among diffusion-omniglot28"),
    (".", "is a folder"),
    ("text.safetensors", "is not a whole pyro-memory checkpoint"),
    ("text.json", "is not a whole pyro-memory checkpoint"),
])  # fmt: skip
def test_an_error_is_one_line_and_the_status_one(capsys, tmp_path, monkeypatch, file, message):
    monkeypatch.chdir(tmp_path)
    if file.startswith("text"):
        (tmp_path / file).write_text("no checkpoint")
    assert main(["info", file]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_it_helps_and_runs_as_a_module(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pyro_memory", *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    help_of = run("--help")
    assert help_of.returncode == 0
    assert "info" in help_of.stdout
    assert "save_pretrained" in help_of.stdout
    assert run("--version").stdout == f"pyro-memory {__version__}\n"
    failed = run("info", "nothing")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert run("frobnicate").returncode == 2
