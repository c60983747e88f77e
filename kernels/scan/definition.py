"""What the scan computes, token by token: the specification."""

import torch
from torch import Tensor


def recurrence(x: Tensor, a: Tensor, h: Tensor) -> Tensor:
    """Computes h_t = a_t h_{t-1} + x_t; x and a are ``[row, time, dim]``, h before the first token ``[row, dim]``."""
    outputs = []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1)
