"""One block of a sequence model: what mixes its tokens, then an MLP."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyro_memory.nets import PlainModule


class SwiGLU(nn.Module):
    """``(silu(x A) * x B) C``, without biases (Shazeer, 2020, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_and_value = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        gate, value = self.gate_and_value(x).chunk(2, -1)
        return self.out(functional.silu(gate) * value)


class Block(PlainModule):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, dim: int, mixer: nn.Module, hidden: int) -> None:
        super().__init__()
        self.mixer_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.mixer = mixer
        self.mlp = SwiGLU(dim, hidden)

    def forward(self, x: Tensor, state: Any, lengths: Tensor | None) -> tuple[Tensor, Any]:
        mixed, state = self.mixer(self.mixer_norm(x), state, lengths)
        return self._after(x + mixed), state

    def step(self, x: Float[Tensor, "batch dim"], state: Any) -> tuple[Tensor, Any]:
        """Takes one token."""
        mixed, state = self.mixer.step(self.mixer_norm(x), state)
        return self._after(x + mixed), state

    def _after(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.mlp_norm(x))


def check_maker(mixer: Any) -> None:
    """Raises a TypeError for a mixer that is built already, where one is made for each block."""
    if isinstance(mixer, nn.Module):
        raise TypeError(
            f"`mixer` must make one a block from `dim`; got a {type(mixer).__name__} that is built already. Give "
            "the class, or partial(TitansLMM, heads=2)"
        )
