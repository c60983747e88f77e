"""Calls that begin or end inside a chunk: the form in pieces against the token rule, and cuts anywhere."""

import pytest
import torch
from memory_calls import DEVICE, STATE, call, problem, with_gradients
from torch.testing import assert_close

from pyro_memory.kernels import memory_surprise, neural_memory

CHUNK, WIDTHS = 4, {1: [5, 5], 2: [5, 7, 5], 3: [5, 7, 6, 5]}
POSITIONS = [0, 0, 0], [2, 2, 2], [3, 0, 1]
LENGTHS = {1: (None, [0, 1, 1]), 2: (None,), 11: (None, [11, 1, 9], [0, 2, 3])}
CASES = [(time, position, lengths) for time in LENGTHS for position in POSITIONS for lengths in LENGTHS[time]]


def anchored(depth, time, *, norm=True, channels=False):
    """Tensors of a call of three sequences whose anchor is neither the weights nor what they came from."""
    tensors = problem(WIDTHS[depth], time, batch=3, norm=norm)
    tensors["anchor"] = [0.5 * torch.randn_like(w) for w in tensors["weights"]]
    if channels:
        tensors["decay"] = [0.2 * torch.rand(*d.shape, w, device=DEVICE).to(d)
                            for d, w in zip(tensors["decay"], WIDTHS[depth][1:], strict=True)]  # fmt: skip
    return tensors


def counts(numbers):
    return None if numbers is None else torch.tensor(numbers, device=DEVICE)


def cut_tokens(tensors, where):
    kept = (*STATE, "norm_weight", "norm_bias")
    return {n: group if n in kept else [t[:, :, where] for t in group] for n, group in tensors.items()}


def state_of(outputs, depth):
    """The five outputs, or what stands for outputs of tokens and the four of the state, as a call takes the latter."""
    parts = zip(STATE[:3], (outputs[1 + i * depth :][:depth] for i in range(3)), strict=True)
    return dict(parts), outputs[-1]


@pytest.mark.parametrize("depth", WIDTHS)
@pytest.mark.parametrize(
    ("norm", "channels", "activation"), [(True, False, "gelu"), (True, True, "gelu"), (False, False, "silu")]
)
def test_values_states_and_gradients_inside_a_chunk_are_those_of_the_token_rule(depth, norm, channels, activation):
    for time, position, lengths in CASES:
        tensors = anchored(depth, time, norm=norm, channels=channels)
        options = {"chunk_size": CHUNK, "position": counts(position), "lengths": counts(lengths)}
        options["activation"] = activation
        if channels:
            options["norm_eps"], tensors["rest"] = 0.5, [torch.randn_like(w) for w in tensors["weights"]]
        pairs = zip(*(with_gradients(tensors, backend=b, **options) for b in ("torch", "reference")), strict=True)
        for actual, expected in pairs:
            assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("pieces", [[1] * 13, [3, 10], [4, 9], [5, 1, 7], [12, 1]])
def test_a_sequence_goes_on_from_what_was_returned_wherever_it_was_cut(pieces, backend):
    tensors = problem(WIDTHS[2], 13, batch=3, norm=True)
    options = {"chunk_size": CHUNK, "backend": backend}
    start = {"anchor": [torch.full_like(w, torch.nan) for w in tensors["weights"]]}  # not read where a chunk begins
    position, outputs, rest = counts([0, 0, 0]), [], tensors
    whole = call(tensors | start, position=position, **options)
    for actual, expected in zip(whole, call(tensors, **options), strict=False):
        assert_close(actual, expected)  # without a position, but for the anchor and the position at the end
    for begin, size in zip(torch.tensor([0, *pieces]).cumsum(0).tolist(), pieces, strict=False):
        piece = cut_tokens(rest | start, slice(begin, begin + size))
        out = call(piece, position=position, **options)
        start, position = state_of(out, 2)
        outputs.append(out[0])
    for actual, expected in zip([torch.cat(outputs, 2), *out[1:]], whole, strict=True):
        assert_close(actual, expected)
    assert position.tolist() == [1, 1, 1]


def test_sequences_at_different_places_are_each_as_if_alone():
    tensors, position = anchored(2, 11), [3, 0, 1]
    lengths = [11, 0, 6]
    together = call(tensors, chunk_size=CHUNK, position=counts(position), lengths=counts(lengths))
    for i, (place, length) in enumerate(zip(position, lengths, strict=True)):
        if not length:
            same = [*tensors["weights"], *tensors["momentum_state"], *tensors["weights"]]  # it stood at a chunk's start
            assert_close([t[i] for t in together[1:-1]], [t[i] for t in same])
            assert not together[0][i].any()
            assert together[-1][i] == place
            continue
        of_all = ("norm_weight", "norm_bias")
        alone = {n: group if n in of_all else [t[i : i + 1] for t in group] for n, group in tensors.items()}
        y, *state = call(cut_tokens(alone, slice(length)), chunk_size=CHUNK, position=counts([place]))
        assert_close(together[0][i, :, :length], y[0])
        assert_close([t[i] for t in together[1:]], [t[0] for t in state])


def test_a_call_leaves_what_it_was_given_as_it_was():
    tensors, position = anchored(2, 6), counts([3, 0, 1])
    before = {n: [t.clone() for t in group] for n, group in tensors.items()}
    call(tensors, chunk_size=CHUNK, position=position)
    call(cut_tokens(tensors, slice(1)), chunk_size=CHUNK, position=position)
    for name, group in tensors.items():
        assert_close(group, before[name], rtol=0, atol=0)
    assert position.tolist() == [3, 0, 1]


@pytest.mark.parametrize("cut", [1, 3, 4, 6, 12])
def test_surprise_goes_on_inside_a_chunk(cut):
    tensors = {n: group for n, group in problem(WIDTHS[2], 13, batch=3, norm=True).items() if n != "q"}

    def surprise(tensors, position):
        args = {n: tuple(group) if n in STATE or len(group) > 1 else group[0] for n, group in tensors.items()}
        loss, *state, place = memory_surprise(**args, chunk_size=CHUNK, position=position, residual_norm=True)
        return [loss, *(t for part in state for t in part), place]

    whole = surprise(tensors, counts([0, 0, 0]))
    first = surprise(cut_tokens(tensors, slice(cut)), counts([0, 0, 0]))
    state, position = state_of(first, 2)
    second = surprise(cut_tokens(tensors, slice(cut, None)) | state, position)
    assert_close(torch.cat([first[0], second[0]], 2), whole[0])
    assert_close(second[1:], whole[1:])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"position": torch.tensor([0, 4, 1])}, r"`position` must lie between 0 and `chunk_size` - 1 = 3; got"),
        ({}, {"position": torch.tensor([-1, 0, 1])}, r"`position` must lie between 0 and `chunk_size` - 1 = 3; got"),
        ({}, {"position": torch.tensor([0.0, 1, 1])}, r"`position` must be integers \(torch.long\), one for each of"),
        ({}, {"position": torch.tensor([0, 1])}, r"`position` must be integers .* got torch.int64 of shape \[2\]"),
        ({}, {"position": None}, "`anchor` is the open chunk's: give `position` too"),
        ({"anchor": lambda a: a[:1]}, {}, "`anchor` must have the shapes of `weights`"),
        ({"anchor": lambda a: [w[..., :3] for w in a]}, {}, "`anchor` must have the shapes of `weights`"),
        ({"anchor": lambda a: [w.long() for w in a]}, {}, "`anchor` must hold floating-point tensors"),
        ({"anchor": lambda a: [w[:2] for w in a]}, {}, "`anchor` must hold floating-point tensors"),
    ],
)  # fmt: skip
def test_an_anchor_and_a_position_that_do_not_fit_are_refused(change, options, message):
    tensors = anchored(2, 6)
    for name, how in change.items():
        tensors[name] = how(tensors[name])
    with pytest.raises(ValueError, match=message):
        call(tensors, **{"chunk_size": CHUNK, "position": torch.zeros(3, dtype=torch.long)} | options)


def test_a_token_of_mixed_dtypes_is_computed_in_the_widest():
    k, gate = torch.randn(1, 2, 1, 4), torch.full((1, 2, 1), 0.1)
    weights, position = (torch.randn(1, 2, 4, 4),), torch.zeros(1, dtype=torch.long)
    options = {"chunk_size": 4, "position": position}
    for v, norm in ((k.double(), {}), (k, {"norm_weight": torch.ones(4).double(), "residual_norm": True})):
        arguments = (k, k, v, weights, gate, gate, gate)
        found, rule = (neural_memory(*arguments, backend=b, **options, **norm) for b in ("auto", "reference"))
        assert_close(found[0], rule[0])
        assert found[1][0].dtype == rule[1][0].dtype
    assert neural_memory(k, k, k, weights, gate, gate, gate, return_state=False, **options)[1:] == (None,) * 4
