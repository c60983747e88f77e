"""Operations and bytes of the neural memory's kernels, as derived in docs/kernels.md, and the floor they give."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One call: ``expansion`` 0 is the linear memory, else hidden units over dim."""

    dim: int
    expansion: int
    chunk: int
    time: int
    batch: int
    heads: int
    norm: bool = True
    token_bytes: int = 2

    @property
    def rows(self) -> int:
        return self.batch * self.heads

    @property
    def state_size(self) -> int:
        """Numbers in W and S of a row."""
        return 2 * self.dim**2 if self.expansion == 0 else 4 * self.expansion * self.dim**2


def flops(case: Case, backward: bool) -> int:
    """Of the products of all chunks; a backward pass counts what it computes again from the states that were kept."""
    d, C, norm = case.dim, case.chunk, int(case.norm)
    h = case.expansion * d
    if case.expansion == 0:
        chunk = (
            (22 + 4 * norm) * C * d * d + (10 + 2 * norm) * C * C * d if backward else 10 * C * d * d + 4 * C * C * d
        )
    elif backward:
        chunk = (54 + 4 * norm) * C * d * h + C * C * (12 * h + (10 + 2 * norm) * d)
    else:
        chunk = 22 * C * d * h + 4 * C * C * (d + h)
    return case.rows * -(-case.time // C) * chunk


def traffic(case: Case, backward: bool, training: bool) -> int:
    """Bytes to and from device memory: tokens, gates and states once; the states kept before every chunk."""
    layers = 1 if case.expansion == 0 else 2
    chunks = -(-case.time // case.chunk)
    tokens, gates, state = case.time * case.dim * case.token_bytes, 3 * layers * case.time * 4, case.state_size * 4
    if backward:
        apart = 2 * layers * chunks * case.chunk**2 * 4  # the gates' weights' gradients, written and read
        row = 7 * tokens + 2 * gates + apart + chunks * state + 2 * state
    else:
        row = 4 * tokens + gates + 2 * state + (chunks * state if training else 0)
    return case.rows * row


def floor_ms(case: Case, passes: str, flops_per_s: float, bytes_per_s: float) -> float:
    """The least time at these ceilings: the slower of operations and bytes, pass by pass."""
    training = passes == "forward+backward"
    times = [
        max(flops(case, back) / flops_per_s, traffic(case, back, training) / bytes_per_s) for back in (False, True)
    ]
    return 1e3 * (sum(times) if training else times[0])
