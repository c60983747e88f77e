"""Mixers under torch.compile and torch.export, in a process of its own: none of the suite's type checks is compiled.

python compiled_mixers.py    # a JSON of what failed
"""

import json
import traceback
import warnings
from functools import partial

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from pyro_memory.kernels.memory.torch_operator import memory_run
from pyro_memory.models import NeuralMemory, TitansMAC, TitansMAG

MIXERS = {
    "memory": NeuralMemory,
    "plain MLP": partial(NeuralMemory, residual_norm=False),
    "MAG": partial(TitansMAG, window=7),
    "MAC": partial(TitansMAC, segment=8),
}


def build(name):
    torch._dynamo.reset()
    return MIXERS[name](8, heads=2, chunk_size=4)


def a_token_is_one_graph(name):
    mixer = build(name)
    counter = CompileCounterWithBackend("eager")
    step, x = torch.compile(mixer.step, fullgraph=True, backend=counter), torch.randn(2, 10, 8)
    with torch.no_grad():
        whole, _ = mixer(x)
        state = mixer.initial_state(2)
        for i, token in enumerate(x.unbind(1)):
            y, state = step(token, state)
            assert_close(y, whole[:, i])
    assert counter.frame_count == 1


def sequences_of_any_length_are_one_graph(name):
    mixer = build(name).double()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend=counter)
    for time in (13, 22, 8, 31, 9):  # a multiple of MAG's window is another graph
        x = torch.randn(2, time, 8, dtype=torch.float64)
        for actual, expected in zip(parts(*compiled(x)), parts(*mixer(x)), strict=True):
            assert_close(actual, expected)
    assert counter.frame_count == 1


def a_segment_more_is_another_graph(name):
    counter, mixer = CompileCounterWithBackend("eager"), build(name)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend=counter)
    for time in (13, 15, 23):
        x = torch.randn(2, time, 8)
        assert_close(compiled(x)[0], mixer(x)[0])
    assert counter.frame_count == 2


def it_has_the_same_gradients_and_goes_on(name):
    memory = build(name).double()
    compiled = torch.compile(memory, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(2, 19, 8, dtype=torch.float64)
    results = []
    for call in (compiled, memory):
        leaf = x.clone().requires_grad_()
        _, state = call(leaf[:, :7])
        y, state = call(leaf[:, 7:], state)
        loss = sum(t.sin().sum() for t in parts(y, state) if t.is_floating_point())
        results.append(torch.autograd.grad(loss, [leaf, *memory.parameters()]))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def a_map_of_tokens_is_compiled(name):
    memory = build(name)
    state, tokens = memory.initial_state(2), torch.randn(3, 2, 8)
    mapped = torch.func.vmap(lambda token: memory.step(token, state)[0])
    with torch.no_grad():
        assert_close(
            torch.compile(mapped, backend="eager")(tokens), torch.stack([memory.step(t, state)[0] for t in tokens])
        )


def it_is_exported_with_any_length(name):
    memory = build(name)
    length = torch.export.Dim("time", min=4, max=64)  # the taps of the convolution
    program = torch.export.export(memory, (torch.randn(2, 12, 8),), dynamic_shapes=({1: length},), strict=True)
    x = torch.randn(2, 27, 8)
    assert_close(program.module()(x)[0], memory(x)[0])


def the_operator_passes_opcheck(name):
    def tensors(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    gates = [(0.1 * torch.rand(1, 2, 5, dtype=torch.float64)).requires_grad_() for _ in range(3)]
    inputs = [*(tensors(1, 2, 5, 3) for _ in range(3)), *(tensors(1, 2, 3, 3) for _ in range(3)), *gates]
    settings = (torch.tensor([1]), None, 1, 2, "gelu", True, 1e-5, [False] * 3, 0)
    torch.library.opcheck(memory_run, (inputs, *settings))


def parts(y, state):
    return [y, *state.to_tensors().values()]


CLAIMS = {
    a_token_is_one_graph: ["memory", "MAC"],
    sequences_of_any_length_are_one_graph: ["memory", "plain MLP", "MAG"],
    a_segment_more_is_another_graph: ["MAC"],
    it_has_the_same_gradients_and_goes_on: ["memory"],
    a_map_of_tokens_is_compiled: ["memory", "plain MLP"],
    it_is_exported_with_any_length: ["memory"],
    the_operator_passes_opcheck: ["memory"],
}


def main():
    warnings.simplefilter("ignore")
    found = {}
    for claim, names in CLAIMS.items():
        for name in names:
            torch.manual_seed(0)
            try:
                claim(name)
                found[f"{claim.__name__}, {name}"] = None
            except Exception:
                found[f"{claim.__name__}, {name}"] = traceback.format_exc()[-2000:]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
