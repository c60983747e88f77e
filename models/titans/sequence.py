"""One sequence model; what mixes its tokens over time is an argument."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_memory.gate import checked
from pyro_memory.inference import KeepFrozen, check_given
from pyro_memory.models.titans.block import Block, check_maker
from pyro_memory.models.titans.readouts import NormalReadout, Readout, TokenReadout
from pyro_memory.models.titans.state import Lengths, SequenceState, check_lengths
from pyro_memory.naming import unique_name

MakeMixer = Callable[[int], nn.Module]
Elements = Int[Tensor, "batch time"] | Float[Tensor, "batch time feature"]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@checked
class SequenceModel(PyroModule):
    r"""Writes a sequence down, each element given those before it.

    .. code-block:: text

        h_t = blocks(start, x_1 .. x_t)         RMSNorm, mixer, RMSNorm, SwiGLU; residual
        x_{t+1} ~ readout(h_t)                  or, where targets are given, targets_t ~ readout(h_t)

    Trained with an ``EmptyGuide`` and ``Trace_ELBO`` this is maximum likelihood. A guide over what a user makes random,
    such as ``model.readout.weight = PyroSample(...)``, makes it Bayesian; then give ``data_size``, so that the data
    weigh against the prior as all of them would.

    Args:
        embedding: maps elements to vectors ``[*batch, dim]``.
        mixer: makes a mixer from ``dim``, once a block: a class, or ``partial(TitansLMM, heads=2)``. A mixer is called
            as ``mixer(x, state, lengths) -> (y, state)`` and ``mixer.step(token, state) -> (y, state)``, and has
            ``initial_state(batch)``.
        readout: maps hidden vectors to the distribution of an element.
        dim: of the hidden vectors.
        blocks: how many.
        hidden: the width of the SwiGLU; by default ``8 dim / 3``.
        parameters: chooses ``hidden`` so that the model has about so many, to compare mixers fairly.
        data_size: how many sequences there are in all, where batches are samples of them.

    ``forward(x, mask=None, targets=None)`` has one site ``x`` in plate ``batch``: ``x`` is ``[batch, time]`` tokens or
    ``[batch, time, feature]`` values; where ``mask [batch, time]`` is false, an element is read but not scored (padding
    at the end, all but the answers). ``targets [batch, last, size]`` are explained in place of ``x``, by the last
    positions.

    Raises:
        ValueError: for shapes, types or values that do not fit.

    References: Titans (Behrouz, Zhong & Mirrokni, 2025), https://arxiv.org/abs/2501.00663; LLaMA (Touvron et al.,
    2023), https://arxiv.org/abs/2302.13971
    """

    def __init__(
        self,
        embedding: nn.Module,
        mixer: MakeMixer,
        readout: Readout,
        *,
        dim: int,
        blocks: int = 2,
        hidden: int | None = None,
        parameters: int | None = None,
        data_size: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name or unique_name(self))
        if blocks < 1:
            raise ValueError(f"`blocks` must be at least 1; got {blocks}")
        check_maker(mixer)
        self.embedding = embedding
        self.start = nn.Parameter(torch.randn(dim))
        self.norm = nn.RMSNorm(dim)
        self.readout = readout
        mixers = [mixer(dim) for _ in range(blocks)]
        if parameters is not None:
            others = _count(self) + sum(_count(m) + 2 * dim for m in mixers)
            hidden = round((parameters - others) / (3 * dim * blocks))
        elif hidden is None:
            hidden = 8 * dim // 3
        if hidden < 1:
            raise ValueError(
                f"`hidden` must be at least 1, and `parameters` leave as much to the SwiGLU; got {hidden} with "
                f"parameters={parameters}"
            )
        self.blocks = PyroModule[nn.ModuleList]([Block(dim, m, hidden) for m in mixers])
        self.data_size = data_size

    @classmethod
    def tokens(cls, vocabulary: int, mixer: MakeMixer, *, dim: int = 64, **options: Any) -> SequenceModel:
        """Builds it for tokens ``0 .. vocabulary - 1``."""
        return cls(nn.Embedding(vocabulary, dim), mixer, TokenReadout(dim, vocabulary), dim=dim, **options)

    @classmethod
    def series(
        cls, features: int, mixer: MakeMixer, *, dim: int = 64, outputs: int | None = None,
        readout: type[Readout] = NormalReadout, **options: Any,
    ) -> SequenceModel:  # fmt: skip
        """Builds it for ``features`` real values a time, or for targets of ``outputs`` values."""
        return cls(nn.Linear(features, dim), mixer, readout(dim, outputs or features), dim=dim, **options)

    def forward(
        self, x: Elements, mask: Bool[Tensor, "batch time"] | None = None, targets: Tensor | None = None
    ) -> None:
        hidden = self.hidden(x)
        data = x if targets is None else targets
        self._check_data(x, data, mask)
        hidden = hidden[:, :-1] if targets is None else hidden[:, -data.shape[1] :]
        size = {"size": len(x)}
        if self.data_size is not None:
            size = {"size": self.data_size, "subsample": torch.arange(len(x), device=x.device)}
        x_dist = self.readout(hidden)  # outside the plate: its random weights are of all sequences
        x_dist = x_dist if mask is None else x_dist.mask(mask)
        with pyro.plate("batch", **size):
            pyro.sample("x", x_dist.to_event(1), obs=data)

    @pyro_method
    def x_dist(self, x: Elements) -> dist.Distribution:
        """p(x_t | x_<t) for every t, batch shape ``[batch, time]``."""
        return self.readout(self.hidden(x)[:, :-1])

    @pyro_method
    def hidden(self, x: Elements, lengths: Lengths = None) -> Float[Tensor, "batch after dim"]:
        """h_0 .. h_time, one more than elements: what the read-out maps to the distribution of the next one."""
        self._check(x)
        check_lengths(x, lengths, least=0)
        return self._blocks(self._embed(x, first=True), None, None if lengths is None else lengths + 1)[0]

    @pyro_method
    def read(
        self, x: Elements, state: SequenceState | None = None, lengths: Lengths = None
    ) -> tuple[dist.Distribution, SequenceState]:
        """Reads elements after those that made ``state``; gives p(next | all read), one a sequence, and the state.

        Args:
            x: ``[batch, time]`` or ``[batch, time, feature]``; without a state, ``time`` may be 0.
            state: None starts a sequence.
            lengths: how many elements of each sequence count; those after are padding.
        """
        self._check(x)
        first = state is None
        if x.shape[1] + first == 0:
            raise ValueError("`x` must hold at least one element where a `state` is given; got none")
        check_lengths(x, lengths, least=0 if first else 1)
        ends = None if lengths is None else lengths + first
        hidden, state = self._blocks(self._embed(x, first=first), state, ends)
        last = hidden[:, -1] if ends is None else hidden[torch.arange(len(x), device=x.device), ends - 1]
        return self.readout(last), state

    @pyro_method
    def step(self, x: Tensor, state: SequenceState) -> tuple[dist.Distribution, SequenceState]:
        """Reads one element, ``[batch]`` or ``[batch, feature]``, at constant cost; gives what ``read`` gives."""
        hidden, states = self.embedding(x), []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            hidden, after = block.step(hidden, before)
            states.append(after)
        return self.readout(self.norm(hidden)), SequenceState(tuple(states))

    def next_dist(self, x: Elements, lengths: Lengths = None) -> dist.Distribution:
        """p(next | x), or p(targets | x) of a model that was trained on targets; batch shape ``[batch]``."""
        return self.read(x, lengths=lengths)[0]

    @pyro_method
    @torch.no_grad()
    def generate(
        self, prompt: Elements, steps: int, *, state: SequenceState | None = None, lengths: Lengths = None,
        temperature: float = 1.0, seed: int | None = None,
    ) -> tuple[Tensor, SequenceState]:  # fmt: skip
        """Reads a prompt, then draws ``steps`` elements one by one; gives them and the state after the last but one.

        For a Bayesian model, condition on a draw of the guide: ``pyro.condition(model.generate, guide())(prompt, 10)``.
        Parameters stay as they are, frozen ones frozen.

        Args:
            prompt: as ``x`` of ``read``; ``[batch, 0]`` starts from nothing.
            steps: at least 1.
            state: what was read before the prompt.
            lengths: of the prompts.
            temperature: 1 draws from the model; 0 takes the likeliest token, or the location.
            seed: of the draws; None uses torch's random stream.

        Raises:
            ValueError: if weights of the model are latent and not given.
        """
        if steps < 1 or temperature < 0:
            raise ValueError(
                f"`steps` must be at least 1 and `temperature` not negative; got {steps} and {temperature}"
            )
        devices = [prompt.device] if prompt.is_cuda else []
        with nullcontext() if seed is None else torch.random.fork_rng(devices), KeepFrozen():
            if seed is not None:
                torch.manual_seed(seed)
            with poutine.trace() as seen:
                next_dist, state = self.read(prompt, state, lengths)
            check_given(seen.trace)
            drawn = [self.readout.draw(next_dist, temperature)]
            for _ in range(steps - 1):
                next_dist, state = self.step(drawn[-1], state)
                drawn.append(self.readout.draw(next_dist, temperature))
        return torch.stack(drawn, 1), state

    def load_state(self, tensors: dict[str, Tensor]) -> SequenceState:
        """Gives the state that ``SequenceState.to_tensors`` took apart.

        Raises:
            ValueError: for tensors that are not those of a state of this model.
        """
        parts: dict[str, dict[str, Tensor]] = {str(i): {} for i in range(len(self.blocks))}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            parts.setdefault(index, {})[name] = tensor
        if len(parts) > len(self.blocks) or not all(parts.values()):
            raise ValueError(
                f"`tensors` must be those of the model's {len(self.blocks)} blocks, named '0.' and so on; got blocks "
                f"{sorted(index for index, part in parts.items() if part)}"
            )
        states = [type(b.mixer.initial_state(1)).from_tensors(parts[str(i)]) for i, b in enumerate(self.blocks)]
        return SequenceState(tuple(states))

    def _embed(self, x: Tensor, *, first: bool) -> Float[Tensor, "batch time dim"]:
        embedded = self.embedding(x)
        return torch.cat([self.start.expand(len(x), 1, -1), embedded], 1) if first else embedded

    def _blocks(
        self, hidden: Tensor, state: SequenceState | None, lengths: Tensor | None
    ) -> tuple[Tensor, SequenceState]:
        before = [None] * len(self.blocks) if state is None else state.blocks
        after = []
        for block, own in zip(self.blocks, before, strict=True):
            hidden, own = block(hidden, own, lengths)
            after.append(own)
        return self.norm(hidden), SequenceState(tuple(after))

    def _check(self, x: Tensor) -> None:
        if isinstance(self.embedding, nn.Embedding):
            count = self.embedding.num_embeddings
            if x.dim() != 2 or x.dtype != torch.long:
                raise ValueError(f"`x` must be long, [batch, time]; got {x.dtype} of shape {list(x.shape)}")
            if x.numel() and not 0 <= int(x.amin()) <= int(x.amax()) < count:
                raise ValueError(
                    f"`x` must hold tokens 0 .. {count - 1}; got {int(x.amin())} .. {int(x.amax())}. Pad with any "
                    "token, and mask it"
                )
        elif x.dim() != 3 or not x.is_floating_point():
            raise ValueError(f"`x` must be floating point, [batch, time, feature]; got {x.dtype} of {list(x.shape)}")
        elif isinstance(self.embedding, nn.Linear) and x.shape[2] != self.embedding.in_features:
            raise ValueError(
                f"`x` must have {self.embedding.in_features} features, as the model was built for; got {x.shape[2]}"
            )

    def _check_data(self, x: Tensor, data: Tensor, mask: Tensor | None) -> None:
        fits = data.shape[0] == x.shape[0] and 1 <= data.shape[1] <= x.shape[1] + 1
        if not fits or (self.readout.event_dim and data.shape[2:] != (self.readout.size,)):
            raise ValueError(
                f"what is explained, `x` or `targets`, must be [{x.shape[0]}, time of at least 1"
                f"{f', {self.readout.size}' if self.readout.event_dim else ''}] and no longer than x and one more; got "
                f"{list(data.shape)} with x {list(x.shape)}"
            )
        if mask is not None and (mask.shape != data.shape[:2] or not mask.any()):
            raise ValueError(
                f"`mask` must be {list(data.shape[:2])}, true somewhere; got {list(mask.shape)}, {int(mask.sum())} true"
            )
        if self.data_size is not None and self.data_size < len(x):
            raise ValueError(f"`data_size` must be at least the batch's {len(x)}; got {self.data_size}")
