"""Operations and bytes of the neural memory's kernels, as derived in docs/kernels.md, and the floor they give."""

from dataclasses import dataclass

TOKEN_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Case:
    """One call: ``expansion`` 0 is the linear memory, else hidden units over dim; ``dtype`` that of the tokens."""

    dim: int
    expansion: int
    chunk: int
    time: int
    batch: int
    heads: int
    norm: bool = True
    dtype: str = "bfloat16"
    activation: str = "gelu"

    @property
    def rows(self) -> int:
        return self.batch * self.heads

    @property
    def state_size(self) -> int:
        """Numbers in W and S of a row."""
        return 2 * self.dim**2 if self.expansion == 0 else 4 * self.expansion * self.dim**2

    def __str__(self) -> str:
        kind = f"x{self.expansion}" if self.expansion else "linear"
        others = [
            "" if self.norm else "no norm",
            self.activation.replace("gelu", ""),
            self.dtype.replace("bfloat16", ""),
        ]
        size = f"{kind:6} d{self.dim:<3} C{self.chunk:<2} T{self.time:<5} rows {self.rows:<4}"
        return " ".join([size, *filter(None, others)]).rstrip()


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
    tokens, gates = case.time * case.dim * TOKEN_BYTES[case.dtype], 3 * layers * case.time * 4
    state, kept = case.state_size * 4, chunks * case.state_size * (2 if case.dtype == "bfloat16" else 4)
    if backward:
        apart = 2 * layers * chunks * case.chunk**2 * 4  # the gates' weights' gradients, written and read
        row = 7 * tokens + 2 * gates + apart + kept + 2 * state
    else:
        row = 4 * tokens + gates + 2 * state + (kept if training else 0)
    return case.rows * row


def floor_ms(case: Case, passes: str, flops_per_s: float, bytes_per_s: float) -> float:
    """The least time at these ceilings: the slower of operations and bytes, pass by pass."""
    training = passes == "forward+backward"
    times = [
        max(flops(case, back) / flops_per_s, traffic(case, back, training) / bytes_per_s) for back in (False, True)
    ]
    return 1e3 * (sum(times) if training else times[0])
