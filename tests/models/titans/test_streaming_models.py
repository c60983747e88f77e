"""What docs/streaming.md says of sequence models: texts in pieces, questions, files, other processes."""

import subprocess
import sys

import pytest
import torch
from mixers import DIM, MIXERS
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from pyro_memory.models import SequenceModel

TIME, VOCABULARY = 13, 9


@pytest.fixture(params=["memory", "LMM", "MAL", "MAG", "MAC"])
def model(request):
    model = SequenceModel.tokens(VOCABULARY, lambda dim: MIXERS[request.param](), dim=DIM, hidden=10).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def text(batch, time):
    return torch.randint(VOCABULARY, (batch, time))


def test_a_call_leaves_the_state_that_it_was_given_as_it_was(model):
    x = text(2, 10)
    _, state = model.read(x)
    before = {n: t.clone() for n, t in state.to_tensors().items()}
    model.read(x, state)
    model.read(x, state, torch.tensor([1, 7]))
    model.step(x[:, 0], state)
    model.generate(x[:, :1], 9, state=state, seed=0)
    memory = getattr(state.blocks[0], "memory", state.blocks[0])
    mixer = model.blocks[0].mixer
    getattr(mixer, "memory", mixer).retrieve(torch.randn(2, 3, DIM).double(), memory.weights)
    assert_close(state.to_tensors(), before, rtol=0, atol=0)


def test_a_model_reads_in_pieces_steps_and_comes_back_from_a_file_as_if_it_read_the_whole(model, tmp_path):
    x = text(2, TIME)
    whole = model.x_dist(torch.cat([x, x[:, :1]], 1)).logits
    _, end = model.read(x)
    _, state = model.read(x[:, :3])
    next_dist, state = model.read(x[:, 3:11], state)
    assert_close(next_dist.logits, whole[:, 11])
    save_file(state.to_tensors(), tmp_path / "state")
    state = model.load_state(load_file(tmp_path / "state"))
    for t in range(11, TIME):
        next_dist, state = model.step(x[:, t], state)
        assert_close(next_dist.logits, whole[:, t + 1])
    assert state.allclose(end)
    assert repr(state) == f"SequenceState(2 blocks, each with {type(state.blocks[0]).__name__})"


def test_gradients_of_a_model_through_its_state_are_those_of_the_whole(model):
    x = text(2, 12)
    results = []
    for sizes in ([12], [5, 4, 3], [1] * 12):
        state = None
        for piece in x.split(sizes, 1):
            next_dist, state = model.read(piece, state)
        loss = next_dist.log_prob(x[:, 0]).sum() + sum(t.sum() for t in state.to_tensors().values())
        results.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_texts_of_different_lengths_are_each_as_if_alone_and_answer_as_if_alone(model):
    x, lengths, more = text(3, 9), torch.tensor([9, 0, 4]), text(3, 6)
    next_dist, state = model.read(x, lengths=lengths)
    answer, after = model.read(more, state)
    for i, n in enumerate(lengths.tolist()):
        alone, own = model.read(x[i : i + 1, :n])
        assert_close(next_dist.logits[i : i + 1], alone.logits)
        assert state.select(torch.tensor([i])).allclose(own)
        alone, own = model.read(more[i : i + 1], own)
        assert_close(answer.logits[i : i + 1], alone.logits)
        assert after.select(torch.tensor([i])).allclose(own)


def test_questions_to_one_state_do_not_see_each_other_and_beams_and_fresh_starts_are_rows(model):
    book, questions = text(1, 17), text(3, 4)
    _, state = model.read(book)
    together, _ = model.generate(questions, 5, state=state.repeat(3), temperature=0)
    for i in range(3):
        alone, _ = model.generate(questions[i : i + 1], 5, state=state, temperature=0)
        assert torch.equal(together[i], alone[0])
    _, fresh = model.read(book[:, :0])
    again = state.repeat(2).reset(torch.tensor([False, True]), fresh)
    assert again.select(torch.tensor([False, True])).allclose(fresh)
    token = torch.tensor([2])
    assert_close(model.step(token.expand(2), again)[0].logits[1:], model.next_dist(token[None]).logits)


def test_a_state_of_another_model_or_of_before_is_refused_in_a_sentence(model):
    with pytest.raises(ValueError, match=r"`tensors` must hold .* for a \w+State; got .*read the sequence again"):
        model.load_state({"0.fast.weights.0": torch.zeros(1), "1.fast.weights.0": torch.zeros(1)})
    tensors = model.read(text(1, 3))[1].to_tensors()
    with pytest.raises(ValueError, match=r"`tensors` must be those of the model's 2 blocks.*; got blocks \['0'\]"):
        model.load_state({n: t for n, t in tensors.items() if n.startswith("0.")})


RESUME = """
import sys, torch
from mixers import MIXERS, DIM
from safetensors.torch import load_file, save_file
from pyro_memory.models import SequenceModel
model = SequenceModel.tokens(9, lambda dim: MIXERS["MAC"](), dim=DIM, hidden=10).double()
model.load_state_dict(load_file("weights"))
next_dist, state = model.read(torch.tensor([[1, 2, 3]]), model.load_state(load_file("state")))
save_file({"logits": next_dist.logits.detach(), **state.to_tensors()}, "after")
"""


def test_another_process_goes_on_from_files(tmp_path):
    model = SequenceModel.tokens(VOCABULARY, lambda dim: MIXERS["MAC"](), dim=DIM, hidden=10).double()
    _, state = model.read(text(1, 13))
    save_file(model.state_dict(), tmp_path / "weights")
    save_file(state.to_tensors(), tmp_path / "state")
    code = f"import sys; sys.path[:0] = {sys.path}\n{RESUME}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    next_dist, state = model.read(torch.tensor([[1, 2, 3]]), state)
    assert_close(load_file(tmp_path / "after"), {"logits": next_dist.logits, **state.to_tensors()})


@torch.no_grad()
def test_a_sequence_model_under_autocast_reads_and_steps_but_for_rounding(model):
    model, x = model.float(), text(2, TIME)
    expected, _ = model.read(x)
    with torch.autocast("cpu", torch.bfloat16):
        next_dist, state = model.read(x[:, :7])
        for token in x[:, 7:].unbind(1):
            next_dist, state = model.step(token, state)
    assert {t.dtype for t in state.to_tensors().values()} == {torch.float32, torch.int64}
    assert_close(next_dist.probs, expected.probs, rtol=0, atol=0.05)
