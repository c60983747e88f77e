"""A user's own mixer keeps the contract; broken in any one way, it fails and is told how."""

import pytest
import torch
from torch import nn

from pyro_memory.testing.mixers import check_mixer


class Fading:
    """What is left of each sequence."""

    def __init__(self, left):
        self.left = left

    def detach(self):
        return Fading(self.left.detach())

    def to_tensors(self):
        return {"left": self.left}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(tensors["left"])


class Average(nn.Module):
    """Averages the past, what is older counting less."""

    def __init__(self, dim=6):
        super().__init__()
        self.dim = dim
        self.keep = nn.Parameter(torch.zeros(dim))
        self.into, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def initial_state(self, batch):
        return Fading(self.keep.new_zeros(batch, self.dim))

    def forward(self, x, state=None, lengths=None):
        left = (self.initial_state(len(x)) if state is None else state).left
        lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
        keep, outputs = self.keep.sigmoid(), []
        for t, token in enumerate(x.unbind(1)):
            there = (t < lengths).unsqueeze(-1)
            left = torch.where(there, keep * left + self.into(token.masked_fill(~there, 0)), left)
            outputs.append(self.out(left.tanh()).masked_fill(~there, 0))
        return torch.stack(outputs, 1), Fading(left)

    def step(self, token, state=None):
        y, state = self(token.unsqueeze(1), state)
        return y.squeeze(1), state


def changed(after):
    """A mixer whose call is changed by ``after(mixer, call, x, state, lengths)``."""

    class Broken(Average):
        def forward(self, x, state=None, lengths=None):
            return after(self, super().forward, x, state, lengths)

    return Broken


def on_outputs(f):
    def after(mixer, call, x, state, lengths):
        y, state = call(x, state, lengths)
        return f(y), state

    return changed(after)


def remembers(mixer, call, x, state, lengths):
    y, state = call(x, state, lengths)
    mixer.last = getattr(mixer, "last", 0.0) + 1
    return y + mixer.last, state


def lags(mixer, call, x, state, lengths):
    return call(torch.cat([0 * x[:, :1], x[:, :-1]], 1), state, lengths)


def writes_in_place(mixer, call, x, state, lengths):
    y, after = call(x, state, lengths)
    if state is not None:
        state.left.data.copy_(after.left)
    return y, after


def reads_padding(mixer, call, x, state, lengths):
    y, state = call(x, state, lengths)
    return y + 0 * x, state


def runs_past_the_end(mixer, call, x, state, lengths):
    return call(x.nan_to_num(), state)


def past_the_end_in_the_state(mixer, call, x, state, lengths):
    return call(x, state, lengths)[0], call(x.nan_to_num(), state)[1]


def cuts_gradients(mixer, call, x, state, lengths):
    y, state = call(x, state, lengths)
    return y, state.detach()


class OtherStep(Average):
    def step(self, token, state=None):
        y, state = super().step(token, state)
        return 2 * y, state


class OtherStart(Average):
    def forward(self, x, state=None, lengths=None):
        return super().forward(x, Fading(x.new_ones(len(x), self.dim)) if state is None else state, lengths)


class IdleMixer(Average):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)


class Endless(Fading):
    def detach(self):
        return self


class Forgetful(Fading):
    @classmethod
    def from_tensors(cls, tensors):
        return cls(0 * tensors["left"])

    def detach(self):
        return Forgetful(self.left.detach())


def with_state(kind):
    def after(mixer, call, x, state, lengths):
        y, state = call(x, state, lengths)
        return y, kind(state.left)

    return changed(after)


class Unsaving(Average):
    def initial_state(self, batch):
        return Wordless(super().initial_state(batch).left)


class Wordless:
    def __init__(self, left):
        self.left = left


BROKEN_MIXERS = {
    "one that peeks ahead": (on_outputs(lambda y: y + 0.1 * y.mean(1, keepdim=True)), "depends on a later token"),
    "one that mixes the batch": (on_outputs(lambda y: y - y.mean(0)), "depends on another sequence of the batch"),
    "one that forgets": (changed(lambda m, call, x, s, n: call(x, None, n)), "cut after 1 tokens, a sequence does not"),
    "one that lags": (changed(lags), "does not depend on its own token"),
    "one that remembers calls": (changed(remembers), "the same call must give the same outputs"),
    "one that writes in place": (changed(writes_in_place), "must leave the state it was given as it was"),
    "another step": (OtherStep, "`step` token by token does not give what `forward` does"),
    "another start": (OtherStart, r"`initial_state\(batch\)` must be where a state of None starts"),
    "one that reads padding": (changed(reads_padding), "what lies past the end of a sequence was read"),
    "one that runs past the end": (changed(runs_past_the_end), "outputs past the end of a sequence must be zero"),
    "a state past the end": (changed(past_the_end_in_the_state), "the state of a sequence of 9 tokens must be that"),
    "gradients that are cut": (changed(cuts_gradients), "no gradient reaches earlier tokens through the state"),
    "gradients that never end": (with_state(Endless), r"`state.detach\(\)` must end the gradient"),
    "a state that is lost on saving": (with_state(Forgetful), "saved by to_tensors .* must go on as the original"),
    "a state that cannot be saved": (Unsaving, "a state must have `detach`"),
    "an idle parameter": (IdleMixer, "`mixer.idle.weight`, `mixer.idle.bias` got no gradient from all outputs"),
    "outputs of another shape": (
        on_outputs(lambda y: y[..., :2]),
        r"y of the shape of x, \[3, 23, 6\]; got tuple",
    ),
    "outputs that are not finite": (on_outputs(lambda y: y / 0), "outputs must be finite"),
}


def test_a_user_s_mixer_keeps_its_contract():
    check_mixer(Average())
    check_mixer(Average(), dim=6)


@pytest.mark.parametrize("how", BROKEN_MIXERS)
def test_a_broken_mixer_is_told_what_is_wrong(how):
    kind, message = BROKEN_MIXERS[how]
    with pytest.raises(AssertionError, match=message):
        check_mixer(kind())
