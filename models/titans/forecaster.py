"""A forecaster of series over any mixer, on the scale of the past that it is given."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_memory.gate import check_least, checked
from pyro_memory.models.titans.block import Block, check_maker
from pyro_memory.models.titans.sequence import MakeMixer
from pyro_memory.naming import unique_name
from pyro_memory.nets import out_of_autocast


@checked
class PatchForecaster(PyroModule):
    r"""Writes down the next ``horizon`` values of a series, given ``past`` values.

    .. code-block:: text

        m, s = mean(x), sqrt(var(x) + eps^2)      of the past, in the series' units
        u = (x - m) / s
        h = blocks(u in patches + places)         RMSNorm, mixer, RMSNorm, SwiGLU; residual; h_T of the last patch
        l = A u + b + C h_T                       C is 0 at first
        y_k ~ Laplace(m + s l_k, s c_k)           k = 1 .. horizon, independent; c learned, at first 1

    So the location is a linear map of the past, the whole model where ``mixer`` is None, and what the mixer adds to it.
    The likelihood's best location is the median; training by it is training by absolute errors, in units of s. A past
    that is shifted and stretched gives a prediction that is (exactly for ``eps=0``), and quantiles, ``icdf``, are in
    the series' units. Trained with an ``EmptyGuide`` and ``Trace_ELBO``: maximum likelihood, in nats a window.

    Args:
        past: how many values are known.
        horizon: how many are to be forecast.
        mixer: makes a mixer from ``dim``, once a block, as for ``SequenceModel``: ``partial(TitansLMM, heads=2)``; None
            leaves the linear map alone.
        patch: values a token; must divide ``past``.
        dim: of the hidden vectors.
        blocks: how many.
        eps: the least deviation that a past is scaled by, in the series' units: one that is constant has none.

    ``forward(x, mask=None, targets=...)`` is called like a ``SequenceModel`` that forecasts, with one site ``x`` in
    plate ``batch``: ``x [batch, time, feature]`` holds the past in any patches, as they follow each other, and
    ``targets [batch, 1, horizon]`` the future, both as measured. ``mask`` must be None. Several channels are sequences
    of their own. Cost: O(past horizon), and that of the mixers over ``past / patch`` tokens.

    Raises:
        ValueError: for sizes out of range, shapes that do not fit, a mask, no targets.
        TypeError: for a mixer that is built already.

    References: reversible instance normalisation (Kim et al., 2022), https://openreview.net/forum?id=cGDAkQo1C0p;
    patches as tokens, PatchTST (Nie et al., 2023), https://arxiv.org/abs/2211.14730; linear maps, Are Transformers
    Effective for Time Series Forecasting? (Zeng et al., 2023), https://arxiv.org/abs/2205.13504

    Example::

        model = PatchForecaster(96, 24, partial(TitansLMM, heads=2, chunk_size=4))
        future = model.next_dist(torch.randn(5, 96, 1))
        low, high = (future.base_dist.icdf(torch.tensor(q)) for q in (0.05, 0.95))  # [5, 24]
    """

    def __init__(
        self, past: int, horizon: int, mixer: MakeMixer | None = None, *, patch: int = 8, dim: int = 32,
        blocks: int = 1, eps: float = 1e-2, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name or unique_name(self))
        check_least(1, past=past, horizon=horizon, patch=patch, dim=dim, blocks=blocks)
        if mixer is not None and past % patch:
            raise ValueError(f"`patch` must divide `past` {past}; got {patch}")
        if not 0 <= eps < math.inf:
            raise ValueError(f"`eps` must be at least 0 and finite, a deviation in the series' units; got {eps}")
        check_maker(mixer)
        self.past, self.horizon, self.patch, self.eps = past, horizon, patch, eps
        self.linear = nn.Linear(past, horizon)
        nn.init.zeros_(self.linear.weight)  # at first the mean of the past, which is 0 here
        nn.init.zeros_(self.linear.bias)
        self.log_scale = nn.Parameter(torch.zeros(horizon))
        self.blocks = None
        if mixer is not None:
            self.embedding = nn.Linear(patch, dim)
            self.places = nn.Parameter(torch.randn(past // patch, dim) / dim**0.5)
            self.blocks = PyroModule[nn.ModuleList]([Block(dim, mixer(dim), 8 * dim // 3) for _ in range(blocks)])
            self.norm = nn.RMSNorm(dim)
            self.head = nn.Linear(dim, horizon, bias=False)
            nn.init.zeros_(self.head.weight)

    @pyro_method
    def next_dist(self, x: Float[Tensor, "batch time feature"]) -> dist.Independent:
        """p(future | past), batch shape ``[batch]``, event shape ``[horizon]``, in the units of ``x``."""
        past = x.flatten(1)
        if past.shape[1] != self.past:
            raise ValueError(
                f"`x` must hold {self.past} values a sequence, the `past` the model was built for; got shape "
                f"{list(x.shape)}"
            )
        mean = past.mean(-1, keepdim=True)
        scale = (past.var(-1, keepdim=True, correction=0) + self.eps**2).sqrt()
        if self.eps == 0 and not bool((scale > 0).all()):
            raise ValueError(
                "`x` must vary, as the model was built with eps=0; got a constant past. Give an eps above 0"
            )
        scaled = (past - mean) / scale
        loc = self.linear(scaled)
        if self.blocks is not None:
            hidden = self.embedding(scaled.unflatten(-1, (-1, self.patch))) + self.places
            for block in self.blocks:
                hidden, _ = block(hidden, None, None)
            loc = loc + self.head(self.norm(hidden[:, -1]))
        return dist.Laplace(mean + scale * out_of_autocast(loc), scale * self.log_scale.exp()).to_event(1)

    def forward(
        self, x: Float[Tensor, "batch time feature"], mask: None = None,
        targets: Float[Tensor, "batch last horizon"] | None = None,
    ) -> None:  # fmt: skip
        if mask is not None or targets is None:
            raise ValueError("`mask` must be None and `targets` be given: a PatchForecaster forecasts")
        if targets.shape != (len(x), 1, self.horizon):
            raise ValueError(f"`targets` must be {[len(x), 1, self.horizon]}; got {list(targets.shape)}")
        next_dist = self.next_dist(x)  # outside the plate, as what is random of it is of all sequences
        with pyro.plate("batch", len(x)):
            pyro.sample("x", next_dist, obs=targets.squeeze(1))
