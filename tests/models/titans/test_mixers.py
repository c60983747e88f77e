"""NeuralMemory and the four Titans: their equations, surprise, and that they stay bounded."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixers import DIM, MIXERS, enlarged, noise
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch.testing import assert_close

from pyro_memory.kernels import neural_memory
from pyro_memory.models import NeuralMemory, TitansLMM, TitansMAC, TitansMAG, TitansMAL
from pyro_memory.models.titans.attention import WindowAttention

TIME = 27


@pytest.fixture(params=MIXERS)
def mixer(request):
    return enlarged(request.param)


# --- states


def test_a_state_can_start_afresh_for_some_sequences_and_be_cast(mixer):
    x = noise(2, TIME)
    _, state = mixer(x[:, :14])
    assert {t.dtype for t in state.to(torch.float32).to_tensors().values()} <= {torch.float32, torch.int64}
    state = state.where(torch.tensor([True, False]), mixer.initial_state(2))
    y, _ = mixer(x[:, 14:], state)
    assert_close(y[0], mixer(x)[0][0, 14:])
    assert_close(y[1], mixer(x[:, 14:])[0][1])


# --- what sees what


def test_the_past_is_remembered_beyond_the_window():
    for name in ("LMM", "MAL", "MAG", "MAC"):
        mixer = MIXERS[name]().double()
        x = noise(1, 60)
        changed = x.clone()
        changed[:, 2] = noise(1, 1)[:, 0]
        assert (mixer(changed)[0] - mixer(x)[0])[:, 50:].abs().max() > 1e-7, name


def test_a_window_is_dense_attention_with_a_band_and_persistent_tokens():
    attention = WindowAttention(8, heads=2, window=5).double()
    x, p = noise(2, 23, 8), noise(1, 3, 8)[0]
    y, _ = attention(x, persistent=p)
    heads, place = attention.heads, torch.arange(23).expand(2, 23)
    q, (k, v), (pk, pv) = heads.queries(x, place), heads.keys_values(x, place), heads.keys_values(p[None], None)
    k, v = (torch.cat([a.expand(2, -1, -1, -1), b], 1) for a, b in ((pk, k), (pv, v)))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 2
    i, j = torch.arange(23)[:, None], torch.arange(-3, 23)
    scores = scores.masked_fill(~((j < 0) | ((j <= i) & (j > i - 5))), -math.inf)
    expected = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2) @ heads.to_out.weight.T
    assert_close(y, expected)


def test_attention_depends_on_distances_not_on_positions():
    attention = WindowAttention(8, heads=1, window=5).double()
    x = noise(1, 9, 8)
    late = attention.initial_state(1)
    late = type(late)(late.keys, late.values, torch.tensor([1_000_000]))
    blank = torch.zeros(1, 4, 8, dtype=torch.float64)
    _, late = attention(blank, late)
    _, early = attention(blank)
    assert_close(attention(x, late)[0], attention(x, early)[0], rtol=1e-6, atol=1e-8)


def test_a_segment_of_mac_is_its_equations_under_the_causal_mask():
    mac = MIXERS["MAC"]().double()
    x = noise(1, 16)
    whole, _ = mac(x)
    memory, weights = mac.memory.initial_state(1), None
    for start in (0, 8):
        s = x[:, start : start + 8]
        weights = memory.weights
        h = mac.memory.retrieve(mac.to_recall(s), weights)
        place = torch.arange(8)[None]
        q = mac.heads.queries(s, place)
        keys = [mac.heads.keys_values(t, at) for t, at in ((mac.persistent[None], None), (h, place), (s, place))]
        y = []
        for i in range(8):
            seen = [(k[:, :n], v[:, :n]) for (k, v), n in zip(keys, (6, i + 1, i + 1), strict=True)]
            k, v = (torch.cat(parts, 1) for parts in zip(*seen, strict=True))
            weight = (torch.einsum("bhd,bshd->bhs", q[:, i], k) / math.sqrt(6)).softmax(-1)
            y.append(torch.einsum("bhs,bshd->bhd", weight, v).flatten(1))
        y = s + mac.heads.to_out(torch.stack(y, 1))
        remembered, memory = mac.memory(y, memory)
        assert_close(whole[:, start : start + 8], mac.gate(y, remembered))


def test_a_memory_is_its_kernel_on_projected_tokens():
    memory = NeuralMemory(6, heads=1, chunk_size=4, convolution=1).double()
    x = noise(2, 8, 6)
    q, k, v = (t.unsqueeze(1) for t in memory.to_qkv(x).chunk(3, -1))
    q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))

    def gate(linear, bound):
        return tuple((bound * torch.sigmoid(linear(x))).permute(2, 0, 1).unsqueeze(2))

    y, *_ = neural_memory(
        q, k, v, (memory.initial_0, memory.initial_1), gate(memory.to_lr, 0.5 * 0.2 / 4), gate(memory.to_momentum, 0.8),
        gate(memory.to_decay, 1 / 4), chunk_size=4, residual_norm=True, backend="reference",
    )  # fmt: skip
    y = y.squeeze(1) / (y.squeeze(1).square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = memory.to_out(y * torch.nn.functional.silu(memory.to_gate(x)))
    assert_close(memory(x)[0], expected)


# --- learning


def test_what_is_repeated_surprises_less():
    memory = NeuralMemory(16, heads=1, surprise=True)
    x = torch.randn(1, 32, 16).repeat(1, 12, 1)
    trace = pyro.poutine.trace(memory).get_trace(x)
    (site,) = [s for name, s in trace.nodes.items() if name.endswith(".surprise")]
    loss, norm = site["value"][0].unflatten(0, (12, 32)).mean(1).T
    assert loss[-1] < 0.8 * loss[0]
    assert norm[-1] < 0.8 * norm[0]


def test_surprise_is_a_deterministic_site_only_where_asked_and_traced():
    x = torch.randn(2, 13, DIM)
    plain = NeuralMemory(DIM, heads=2, chunk_size=4)
    assert not [n for n in pyro.poutine.trace(plain).get_trace(x).nodes if "surprise" in n]
    memory = NeuralMemory(DIM, heads=2, chunk_size=4, surprise=True, name="mem")
    trace = pyro.poutine.trace(memory).get_trace(x)
    whole = trace.nodes["mem.surprise"]["value"]
    assert whole.shape == (2, 13, 2)
    assert trace.nodes["mem.surprise"]["infer"]["_deterministic"]
    _, state = memory(x[:, :6])
    rest = pyro.poutine.trace(memory).get_trace(x[:, 6:], state).nodes["mem.surprise"]["value"]
    assert_close(rest, whole[:, 6:])
    short = pyro.poutine.trace(memory).get_trace(x, None, torch.tensor([13, 5])).nodes["mem.surprise"]["value"]
    assert_close(short[0], whole[0])
    assert not short[1, 5:].any()


def test_gate_biases_may_be_random_and_train_by_svi():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__("regression")
            self.mixer = TitansLMM(8, heads=2, chunk_size=4, persistent=0)
            self.mixer.memory.to_lr.bias = PyroSample(dist.Normal(torch.zeros(4), 1.0).to_event(1))

        def forward(self, x, y):
            mean = self.mixer(x)[0]
            with pyro.plate("batch", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.5).to_event(2), obs=y)

    model = Regression()
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    x = torch.randn(4, 9, 8)
    losses = [svi.step(x, x.roll(1, 1)) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])


# --- it stays finite


def adversarial_tokens(kind, time):
    key = torch.randn(1, 1, 16)
    if kind == "repeated":
        return key.expand(1, time, 16)
    if kind == "opposed":
        return key * (-1.0) ** torch.arange(time)[None, :, None]
    if kind == "two in turn":
        return torch.where(torch.arange(time)[None, :, None] % 2 == 0, key, torch.randn(1, 1, 16))
    return 1000 * torch.randn(1, time, 16)


@pytest.mark.parametrize("kind", ["repeated", "opposed", "two in turn", "large"])
@pytest.mark.parametrize("gates", ["as they start", "open", "switching"])
@pytest.mark.parametrize("norm", [True, False])
def test_adversarial_inputs_and_gates_do_not_make_it_diverge(kind, gates, norm):
    memory = NeuralMemory(16, heads=2, convolution=1, depth=2 if norm else 1, residual_norm=norm)
    if gates != "as they start":
        with torch.no_grad():
            for linear in (memory.to_lr, memory.to_momentum, memory.to_decay):
                linear.weight.zero_()
                linear.bias.fill_(30.0)
    if gates == "switching":
        with torch.no_grad():
            for linear in (memory.to_lr, memory.to_momentum, memory.to_decay):
                linear.weight.normal_(0, 30)
                linear.bias.zero_()
    scale = 1000 if kind == "large" else 1
    with torch.no_grad():
        y, state = memory(adversarial_tokens(kind, 3000))
    assert y.isfinite().all()
    assert max(w.abs().max() for w in state.weights) < 100 * scale


def test_a_linear_memory_without_momentum_never_expands():
    """The bound that the docstring calls proved, at its edge: keys and gates drawn again for each chunk."""
    memory = NeuralMemory(8, heads=1, depth=1, residual_norm=False, momentum=False)
    weights = (torch.eye(8).double()[None, None],)
    for _ in range(50):
        k = torch.nn.functional.normalize(noise(1, 16, 8) * torch.rand(8).double() ** 4, dim=-1).unsqueeze(1)
        lr, decay = (bound * torch.randint(2, (1, 1, 16)).double() for bound in (memory.max_lr, memory.max_decay))
        _, after, _ = neural_memory(k, k, torch.zeros_like(k), weights, lr, torch.zeros_like(lr), decay, chunk_size=16)
        assert torch.linalg.matrix_norm(after[0], 2) <= torch.linalg.matrix_norm(weights[0], 2) + 1e-12
        weights = after if after[0].norm() > 1e-3 else weights


def test_noise_stays_finite_for_a_hundred_thousand_tokens():
    memory, state = NeuralMemory(8, heads=1, expansion=2), None
    with torch.no_grad():
        for _ in range(20):
            y, state = memory(torch.randn(1, 5000, 8), state)
            assert y.isfinite().all()
    assert max(w.abs().max() for w in state.weights) < 100
    assert y.abs().max() < 100


# --- misuse


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NeuralMemory(10, heads=4), "`heads` must divide `dim` 10, or give `head_dim`; got 4"),
        (lambda: NeuralMemory(8, chunk_size=0), "`chunk_size` must be at least 1; got 0"),
        (lambda: NeuralMemory(8, depth=0), "`depth` must be at least 1"),
        (lambda: NeuralMemory(8, convolution=0), "`convolution` must be at least 1"),
        (lambda: NeuralMemory(8, max_decay=17.0), r"`max_decay` must lie in \(0, 16\]"),
        (lambda: NeuralMemory(8, max_momentum=1.0), r"`max_momentum` must lie in \(0, 1\)"),
        (lambda: NeuralMemory(8)(torch.randn(2, 8)), r"`x` must be a floating-point tensor \[batch, time, dim\]; got"),
        (lambda: NeuralMemory(8)(torch.randn(2, 0, 8)), r"`x` must be \[batch, time, 8\] with at least one token"),
        (lambda: NeuralMemory(8)(torch.randn(2, 3, 8), None, torch.tensor([3, 4])), "`lengths` must lie in 0 to 3"),
        (
            lambda: NeuralMemory(8)(torch.randn(2, 3, 8), NeuralMemory(8).initial_state(3)),
            "`state` must be one of this",
        ),
        (lambda: NeuralMemory(8)(torch.randn(2, 3, 8), NeuralMemory(8, depth=3).initial_state(2)), "weights.1"),
        (lambda: TitansMAC(8, segment=24), "`segment` must be a multiple of `chunk_size` 16"),
        (lambda: TitansMAG(8, heads=4), "`heads` must divide `dim` 8 into 4 dimensions or more"),
        (lambda: TitansMAL(8, heads=2, window=0), "`window` must be at least 1"),
        (lambda: TitansLMM(8, persistent=-1), "`persistent` must not be negative"),
        (
            lambda: type(NeuralMemory(8).initial_state(1)).from_tensors({"tail": torch.zeros(1)}),
            r"`tensors` must hold .* for a MemoryState",
        ),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_refused_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()
