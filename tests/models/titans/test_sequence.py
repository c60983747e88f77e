"""The sequence model and its baselines: hand-computed likelihood, causality, padding, streaming, SVI."""

import math
from functools import partial

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import sharpen
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from torch.nn import functional

from pyro_memory import TokenSurprise, fit, information_gain, token_surprise
from pyro_memory.data import RecallTasks
from pyro_memory.diagnostics import plot_text
from pyro_memory.models import (
    DLinear,
    LSTMMixer,
    SequenceModel,
    StudentTReadout,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    TransformerMixer,
)

MIXERS = {
    "transformer": partial(TransformerMixer, heads=2, window=5),
    "lstm": partial(LSTMMixer, hidden=10),
    "lmm": partial(TitansLMM, heads=2, persistent=3, chunk_size=4),
    "mac": partial(TitansMAC, heads=2, persistent=3, chunk_size=4, segment=8),
    "mag": partial(TitansMAG, heads=2, persistent=3, chunk_size=4, window=5),
    "mal": partial(TitansMAL, heads=2, persistent=3, chunk_size=4, window=5),
}


def nothing(*args):
    """The empty guide."""


@pytest.fixture(params=MIXERS)
def mixer(request):
    return MIXERS[request.param]


@pytest.fixture(params=["mac", "lstm"])  # each mixer keeps its own contract
def model(request):
    return sharpen(SequenceModel.tokens(11, MIXERS[request.param], dim=8, blocks=2, hidden=12), 2.0).double()


def tokens(batch=3, time=17):
    return torch.randint(11, (batch, time))


def logits_of(value):
    """The logits of a distribution of tokens."""
    return value.logits


# Likelihood


def test_the_loss_is_the_hand_computed_log_likelihood(model):
    x = tokens()
    hidden = torch.cat([model.start.expand(3, 1, -1), model.embedding(x)], 1)
    for block in model.blocks:
        hidden = hidden + block.mixer(block.mixer_norm(hidden))[0]
        gate, value = block.mlp.gate_and_value(block.mlp_norm(hidden)).chunk(2, -1)
        hidden = hidden + block.mlp.out(gate * gate.sigmoid() * value)
    logits = model.norm(hidden) @ model.readout.weight.T + model.readout.bias
    each = -functional.cross_entropy(logits[:, :-1].flatten(0, 1), x.flatten(), reduction="none").reshape(3, 17)
    loss = Trace_ELBO(max_plate_nesting=1).loss(model, nothing, x)
    assert loss == pytest.approx(-each.sum().item())
    mask = torch.rand(3, 17) < 0.4
    assert Trace_ELBO(max_plate_nesting=1).loss(model, nothing, x, mask) == pytest.approx(-each[mask].sum().item())
    surprise = token_surprise(model, x, mask)
    torch.testing.assert_close(surprise.nats, -each)
    assert torch.equal(surprise.scored, mask)
    assert surprise.mean == pytest.approx(-each[mask].mean().item())


def test_a_text_is_written_on_grounds_as_dark_as_it_was_surprising():
    text, nats = "ab\ncdefg", torch.arange(8.0)
    ax = plot_text(text, nats, columns=4)
    sheet = ax.images[0].get_array()
    assert [t.get_text() for t in ax.texts] == ["a", "b", "¶", "c", "d", "e", "f", "g"]
    assert sheet.shape == (3, 4)
    assert sheet[0, :3].tolist() == [0, 1, 2]
    assert sheet[1].tolist() == [3, 4, 5, 6]  # a full line goes on in the next
    assert sheet[2, 0] == 7
    assert sheet.mask.sum() == 4  # blanks have no ground
    plt.close(ax.figure)
    with pytest.raises(ValueError, match="`nats` must have one number for each of the 8 characters; got 7"):
        plot_text(text, nats[:7])


def test_windowed_attention_equals_attention_with_a_band_mask():
    mixer = TransformerMixer(16, heads=2, window=4).double()
    x = torch.randn(2, 11, 16, dtype=torch.double)
    heads = mixer.heads
    q, k, v = (
        (x @ w.T).unflatten(-1, (2, 8)).transpose(1, 2) for w in (heads.to_q.weight, *heads.to_kv.weight.chunk(2))
    )
    angles = torch.arange(11.0).double()[:, None] * torch.tensor([1.0, 0.01], dtype=torch.double)

    def turn(t):
        pairs = torch.complex(t[..., :2], t[..., 2:4]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag, t[..., 4:]], -1)

    behind = torch.arange(11)[:, None] - torch.arange(11)
    scores = turn(q) @ turn(k).mT / 8**0.5
    weights = scores.masked_fill((behind < 0) | (behind >= 4), -torch.inf).softmax(-1)
    expected = heads.to_out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x)[0], expected)


def test_the_linear_forecaster_equals_its_formula():
    model = DLinear(10, 3, kernel=5)
    x = torch.randn(4, 5, 2)
    past = x.reshape(4, 10)
    padded = torch.cat([past[:, :1].expand(-1, 2), past, past[:, -1:].expand(-1, 2)], -1)
    trend = torch.stack([padded[:, i : i + 5].mean(-1) for i in range(10)], -1)
    expected = trend @ model.trend.weight.T + (past - trend) @ model.rest.weight.T + model.trend.bias + model.rest.bias
    torch.testing.assert_close(model.next_dist(x).mean, expected)
    y = torch.randn(4, 1, 3)
    loss = Trace_ELBO(max_plate_nesting=1).loss(model, nothing, x, None, y)
    assert loss == pytest.approx(-dist.Normal(expected, 1.0).log_prob(y[:, 0]).sum().item())


def test_the_record_of_surprise_counts_what_was_scored():
    nats = torch.tensor([[1.0, 2.0, 9.0], [3.0, 6.0, 9.0]])
    surprise = TokenSurprise(nats, nats < 9)
    assert surprise.mean == 3
    assert surprise.bits == pytest.approx(3 / math.log(2))
    assert surprise.se == pytest.approx(torch.tensor([1.5, 4.5]).std().item() / 2**0.5)
    both = TokenSurprise.cat([surprise, surprise])
    assert both.to_dict() == {"nats": 3, "se": both.se, "bits": surprise.bits, "elements": 8, "sequences": 4}
    assert "TokenSurprise of 4 elements, 2 sequences" in repr(surprise)
    assert "3.000" in repr(surprise)
    drawn = surprise.plot(sequence=1).get_lines()[0].get_ydata()
    assert drawn[:2].tolist() == [3, 6]
    assert math.isnan(drawn[2])


def test_student_s_t_has_about_five_degrees_of_freedom_at_first():
    x_dist = StudentTReadout(4, 3)(torch.zeros(2, 5, 4)).base_dist
    torch.testing.assert_close(x_dist.df, torch.full((2, 5, 3), 5.05), atol=0.01, rtol=0)


@pytest.mark.parametrize("readout", [None, StudentTReadout])
def test_a_series_is_scored_by_its_read_out_and_targets_by_the_last_positions(mixer, readout):
    options = {} if readout is None else {"readout": readout}
    model = SequenceModel.series(2, mixer, dim=8, **options)
    x = torch.randn(3, 6, 2)
    x_dist = model.x_dist(x)
    assert x_dist.batch_shape == (3, 6)
    loss = Trace_ELBO(max_plate_nesting=1).loss(model, nothing, x)
    assert loss == pytest.approx(-x_dist.log_prob(x).sum().item(), rel=1e-5)
    forecaster = SequenceModel.series(2, mixer, dim=8, outputs=4, **options)
    y = torch.randn(3, 1, 4)
    loss = Trace_ELBO(max_plate_nesting=1).loss(forecaster, nothing, x, None, y)
    assert loss == pytest.approx(-forecaster.next_dist(x).log_prob(y[:, 0]).sum().item(), rel=1e-5)
    assert token_surprise(forecaster, x, None, y).nats.shape == (3, 1)


# Invariance


def test_nothing_leaks_from_the_future_or_from_another_sequence(model):
    x = tokens()
    before = logits_of(model.x_dist(x))
    for t in (0, 4, 9):
        changed = x.clone()
        changed[1, t] = (x[1, t] + 1) % 11
        after = logits_of(model.x_dist(changed))
        assert torch.equal(after[1, : t + 1], before[1, : t + 1])
        assert not torch.allclose(after[1, t + 1], before[1, t + 1])
        assert torch.equal(after[[0, 2]], before[[0, 2]])


def test_a_padded_batch_equals_separate_sequences(model):
    lengths = torch.tensor([17, 6, 0])
    x = tokens()
    padded_dist, state = model.read(x, lengths=lengths)
    mask = torch.arange(17) < lengths[:, None]
    loss = Trace_ELBO(max_plate_nesting=1).loss(model, nothing, x, mask)
    alone = 0.0
    after, _ = model.step(torch.tensor([1, 2, 3]), state)
    for i, length in enumerate(lengths):
        own = x[i : i + 1, :length]
        own_dist, own_state = model.read(own)
        torch.testing.assert_close(logits_of(padded_dist)[i], logits_of(own_dist)[0])
        own_after, _ = model.step(torch.tensor([i + 1]), own_state)
        torch.testing.assert_close(logits_of(after)[i], logits_of(own_after)[0])
        alone += Trace_ELBO(max_plate_nesting=1).loss(model, nothing, own) if length else 0.0
    assert loss == pytest.approx(alone)


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 12, 16])
def test_a_sequence_cut_anywhere_and_streamed_gives_the_parallel_distributions(model, cut):
    x = tokens()
    parallel = logits_of(model.x_dist(torch.cat([x, x[:, :1]], 1)))
    next_dist, state = model.read(x[:, :cut])
    torch.testing.assert_close(logits_of(next_dist), parallel[:, cut])
    tensors = {key: t.clone() for key, t in state.detach().to_tensors().items()}
    state = model.load_state(tensors)
    resumed, _ = model.read(x[:, cut:], state)
    torch.testing.assert_close(logits_of(resumed), parallel[:, 17])
    for t in range(cut, 17):
        next_dist, state = model.step(x[:, t], state)
        torch.testing.assert_close(logits_of(next_dist), parallel[:, t + 1])


def test_what_is_generated_is_the_likeliest_of_the_parallel_model(model):
    prompt = tokens(time=4)
    drawn, state = model.generate(prompt, 9, temperature=0)
    whole = torch.cat([prompt, drawn], 1)
    assert torch.equal(logits_of(model.x_dist(whole))[:, 4:].argmax(-1), drawn)
    more, _ = model.generate(drawn[:, -1:], 3, state=state, temperature=0)
    assert torch.equal(more, model.generate(prompt, 12, temperature=0)[0][:, 9:])


def test_generation_draws_from_the_model_and_depends_on_its_seed(model):
    torch.manual_seed(3)
    random = torch.random.get_rng_state()
    start = torch.zeros(4000, 0, dtype=torch.long)
    drawn, _ = model.generate(start, 1, seed=1)
    assert torch.equal(random, torch.random.get_rng_state())
    assert torch.equal(drawn, model.generate(start, 1, seed=1)[0])
    share = torch.bincount(drawn.flatten(), minlength=11) / 4000
    expected = model.next_dist(start[:1]).probs[0]
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-9).all()


def test_a_series_is_generated_from_its_read_out(mixer):
    model = SequenceModel.series(2, mixer, dim=8)
    x = torch.randn(3, 6, 2)
    drawn, _ = model.generate(x, 4, temperature=0)
    assert drawn.shape == (3, 4, 2)
    torch.testing.assert_close(drawn[:, 0], model.next_dist(x).mean)
    torch.testing.assert_close(drawn[:, 3], model.next_dist(torch.cat([x, drawn[:, :3]], 1)).mean)
    noisy, _ = model.generate(x[:1].expand(4000, -1, -1), 1, temperature=0.5, seed=0)
    assert noisy.std(0).mean().item() == pytest.approx(0.5, rel=0.05)


def test_the_number_of_parameters_can_be_set(mixer):
    for wanted in (12_000, 20_000):
        model = SequenceModel.tokens(11, mixer, dim=16, blocks=2, parameters=wanted)
        assert abs(sum(p.numel() for p in model.parameters()) - wanted) <= 3 * 16


# Training


def test_a_bayesian_read_out_trains_every_parameter_and_weighs_the_data_by_their_number(mixer):
    model = SequenceModel.series(2, mixer, dim=8, outputs=3, data_size=60)
    model.readout.weight = PyroSample(dist.Normal(0.0, 0.3).expand([3, 8]).to_event(2))
    guide = AutoNormal(model, init_scale=0.05)
    x, y = torch.randn(6, 4, 2), torch.randn(6, 1, 3)
    trace = poutine.trace(model).get_trace(x, None, y)
    weight = next(name for name in trace.nodes if name.endswith("readout.weight"))
    draw = {weight: trace.nodes[weight]["value"]}
    assert draw[weight].shape == (3, 8)  # one for all sequences
    trace.compute_log_prob()
    once = pyro.condition(model.next_dist, draw)(x).log_prob(y[:, 0]).sum()
    torch.testing.assert_close(trace.nodes["x"]["log_prob_sum"], 10 * once)
    guide(x, None, y)
    before = {name: p.detach().clone() for m in (model, guide) for name, p in m.named_parameters()}
    fit(model, guide, [(x, None, y)], Trace_ELBO(max_plate_nesting=1), steps=2, progress=False)
    after = {name: p for m in (model, guide) for name, p in m.named_parameters()}
    assert {name for name in before if torch.equal(before[name], after[name])} == set()
    assert information_gain(model, guide, x, None, y)[weight].unit == "data set"
    assert token_surprise(model, x, None, y, guide=guide, draws=3).nats.shape == (6, 1)


def test_the_gates_of_a_memory_may_be_random_drawn_once_a_call_and_trained():
    model = SequenceModel.tokens(7, MIXERS["lmm"], dim=8)
    for block in model.blocks:
        block.mixer.memory.to_lr.bias = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    guide = AutoNormal(model, init_scale=0.1)
    x = torch.randint(7, (3, 9))
    trace = poutine.trace(model).get_trace(x)
    names = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name.endswith("to_lr.bias")]
    assert len(names) == 2
    draw = {name: trace.nodes[name]["value"] for name in names}
    streamed, _ = pyro.condition(model.generate, draw)(x[:, :4], 3, temperature=0)
    whole = torch.cat([x[:, :4], streamed], 1)
    assert torch.equal(pyro.condition(model.x_dist, draw)(whole).logits[:, 4:].argmax(-1), streamed)
    options = {"steps": 2, "progress": False, "information_every": None}
    guide(x)
    before = {name: p.detach().clone() for m in (model, guide) for name, p in m.named_parameters()}
    fit(model, guide, [(x,)], Trace_ELBO(max_plate_nesting=1), **options)
    after = {name: p for m in (model, guide) for name, p in m.named_parameters()}
    assert {name for name in before if torch.equal(before[name], after[name])} == set()


def test_surprise_under_a_guide_averages_probabilities():
    model = SequenceModel.tokens(5, MIXERS["lstm"], dim=4, blocks=1)
    model.readout.bias = PyroSample(dist.Normal(0.0, 2.0).expand([5]).to_event(1))
    guide = AutoNormal(model, init_scale=1.0)
    x = torch.randint(5, (2, 3))
    guide(x)
    pyro.set_rng_seed(1)
    nats = token_surprise(model, x, guide=guide, draws=4).nats
    pyro.set_rng_seed(1)
    probs = [pyro.condition(model.x_dist, guide(x))(x).log_prob(x).exp() for _ in range(4)]
    torch.testing.assert_close(nats, -torch.stack(probs).mean(0).log())


def test_weights_that_are_latent_must_be_given():
    model = SequenceModel.tokens(5, MIXERS["lstm"], dim=4, blocks=1)
    model.start.requires_grad_(False)
    x = torch.randint(5, (2, 3))
    model.generate(x, 2)
    assert not model.start.requires_grad
    model.readout.bias = PyroSample(dist.Normal(0.0, 2.0).expand([5]).to_event(1))
    guide = AutoNormal(model)
    with pytest.raises(ValueError, match=r"latent weights of the model, .*readout.bias, must be given; .*condition"):
        model.generate(x, 2)
    with pytest.raises(ValueError, match=r"`guide` must draw the latents of the model, .*readout.bias: without it"):
        token_surprise(model, x)
    assert pyro.condition(model.generate, guide(x))(x, 2)[0].shape == (2, 2)
    assert poutine.replay(model.generate, trace=poutine.trace(guide).get_trace(x))(x, 2)[0].shape == (2, 2)


def test_a_surprise_that_a_guide_of_the_sequence_itself_explains_is_refused():
    def model(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(x.shape), 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.1).to_event(1))

    with pytest.raises(ValueError, match="`model` must have global latents only; z lies in a plate"):
        token_surprise(model, torch.randn(3, 4), guide=guide)


def test_a_short_training_learns_to_recall_what_the_window_holds():
    """Chance is 1 / 8 and the window holds the whole sequence."""
    pyro.set_rng_seed(0)
    model = SequenceModel.tokens(20, partial(TransformerMixer, heads=1, window=16), dim=32)
    task = {"pairs": 2, "length": 12, "vocabulary": 20, "gap": 0, "fillers": 4}
    options = {"learning_rate": 5e-3, "information_every": None, "progress": False}
    fit(model, nothing, RecallTasks(batch=64, **task), Trace_ELBO(max_plate_nesting=1), steps=150, **options)
    x, answers = RecallTasks(batch=200, seed=1, **task)[0]
    assert (model.x_dist(x).logits.argmax(-1) == x)[answers].float().mean() > 0.9
