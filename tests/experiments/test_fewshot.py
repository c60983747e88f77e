"""What the few-shot experiments measure."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from base_pairs import SHAPE, autoregressive
from conftest import ink
from torch.testing import assert_close

from pyro_memory import Context
from pyro_memory.data import LabelledImages
from pyro_memory.guides import AddressedGuide, AutoregressiveBaseGuide
from pyro_memory.models import Addressed

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "experiments"))
import fewshot_measure as measured

DATA = LabelledImages(ink(36, *SHAPE), torch.arange(36) // 12)  # three classes of twelve


def arguments(tmp_path, **options):
    words = "base lookup address reads pretrained folder start steps data test_on evaluate particles protocol"
    given = {"seed": 0, "out": tmp_path, "fresh": False, "device": "cpu", "particles": 1, **options}
    return SimpleNamespace(**dict.fromkeys(words.split()) | given)


def test_sets_are_disjoint_drawings_of_one_class_each_given_those_before_it(tmp_path):
    args = arguments(tmp_path, evaluate=36)
    places = [measured.Sets(DATA, 5, n, args) for n in range(5)]
    assert all(len(place) == 1 for place in places)  # six sets: two drawings of each class are left over
    x, memories = zip(*(place[0] for place in places), strict=True)
    seen = torch.cat(places[0].sets).flatten()
    assert len(seen.unique()) == 30
    assert (DATA.labels[torch.cat(places[0].sets)] == DATA.labels[seen[::5]].unsqueeze(1)).all()
    for n, memory in enumerate(memories):
        assert torch.equal(memory.values, torch.stack(x[:n], 1) if n else memory.values[:, :0])


def test_a_set_costs_what_the_chain_rule_says(tmp_path):
    base = autoregressive(reads=True, unread=0.1)[0].eval()
    model, guide = Addressed(base), AddressedGuide.convolutional(SHAPE, AutoregressiveBaseGuide(), (4, 5)).eval()
    args = arguments(tmp_path, evaluate=36, sets=3)
    told = measured.sets_as_a_whole((base, AutoregressiveBaseGuide()), (model, guide), DATA, args)
    sets = torch.cat(measured.Sets(DATA, 3, 0, args).sets)
    images = DATA[sets.flatten()].unflatten(0, sets.shape)
    total = torch.zeros(len(sets))
    for n in range(3):
        if n:
            each = [base.log_prob(images[:, n], Context(content=base.content(images[:, m]))) for m in range(n)]
            total += (torch.stack(each).logsumexp(0) - torch.tensor(float(n)).log()).detach()
        else:
            total += base.log_prob(images[:, 0], Context()).detach()
    assert (told["size"], told["sets"]) == (3, 12)
    assert_close(told["mean"], (total / 3).mean().item(), rtol=1e-5, atol=1e-4)
    again = measured.sets_as_a_whole((base, AutoregressiveBaseGuide()), (model, guide), DATA, args)
    assert again == told
