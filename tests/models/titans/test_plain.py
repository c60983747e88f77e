"""Mixers as plain modules, and their copies."""

import copy
import pickle

import pyro
import pytest
import torch
from torch.testing import assert_close

from pyro_memory.models import TitansLMM, TitansMAC


@pytest.mark.parametrize("make", [TitansLMM, TitansMAC])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_as_plain_as_its_original(make, copied):
    mixer, x = make(8, heads=2), torch.randn(2, 5, 8)
    again = copied(mixer)
    pyro.clear_param_store()
    assert_close(again(x)[0], mixer(x)[0])
    assert not list(pyro.get_param_store())
    assert type(again.memory.to_out) is type(mixer.memory.to_out)


@pytest.mark.parametrize("depth", [2, 3])
def test_weights_are_all_that_a_module_needs(depth):
    with torch.device("meta"):
        empty = TitansLMM(8, heads=2, depth=depth)
    mixer, x = TitansLMM(8, heads=2, depth=depth), torch.randn(2, 5, 8)
    empty.to_empty(device="cpu").load_state_dict(mixer.state_dict())
    assert_close(empty(x)[0], mixer(x)[0])
