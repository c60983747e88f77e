"""What the sequence model and its baselines refuse, and in which words."""

from functools import partial

import pytest
import torch

from pyro_memory import token_surprise
from pyro_memory.models import DLinear, LSTMMixer, SequenceModel, TransformerMixer

LSTM = partial(LSTMMixer, hidden=10)
TOKENS = SequenceModel.tokens(11, LSTM, dim=8)
SERIES = SequenceModel.series(2, LSTM, dim=8, outputs=3, data_size=4)
X, S = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: TOKENS(X.float()),
            r"`x` must be an integer tensor \[batch, time\] or a floating-point tensor \[batch, time, feature\]; got",
        ),
        (lambda: TOKENS(X + 11), r"`x` must hold tokens 0 .. 10; got 11 .. 11. Pad with any token, and mask it"),
        (lambda: TOKENS(X - 1), r"`x` must hold tokens 0 .. 10; got -1 .. -1"),
        (lambda: TOKENS(X, X), "`mask` must be a boolean tensor"),
        (lambda: TOKENS(X, X.bool()), r"true somewhere; got \[3, 5\], 0 true"),
        (lambda: TOKENS(X[:, :0]), "time of at least 1"),
        (lambda: SERIES(X), "`x` must be floating point"),
        (lambda: SERIES(S * float("nan")), "`x` must be finite"),
        (lambda: SERIES(S), r"must be \[3, time of at least 1, 3\].*got \[3, 5, 2\]"),
        (lambda: SERIES(S, None, torch.zeros(3, 7, 3)), "no longer than x and one more"),
        (lambda: SERIES(S.repeat(2, 1, 1), None, torch.zeros(6, 1, 3)), "`data_size` must be at least the batch's 6"),
        (
            lambda: TOKENS.read(X, lengths=torch.tensor([1, 2, 6])),
            r"`lengths` must be one for each.*0 \.\. 5; got \[1, 2, 6\]",
        ),
        (lambda: TOKENS.read(X, lengths=torch.ones(3)), "`lengths` must be an integer tensor"),
        (lambda: TOKENS.read(X[:, :0], TOKENS.read(X)[1]), "`x` must hold at least one element where a `state`"),
        (lambda: TOKENS.read(X, TOKENS.read(X)[1], torch.tensor([0, 1, 1])), r"in 1 \.\. 5"),
        (lambda: TOKENS.generate(X, 0), "`steps` must be at least 1 and `temperature` not negative; got 0 and 1.0"),
        (lambda: SequenceModel.tokens(5, LSTM, dim=8, blocks=0), "`blocks` must be at least 1; got 0"),
        (
            lambda: SequenceModel.tokens(5, LSTM, dim=8, parameters=900),
            "`hidden` must be at least 1, and `parameters` leave as much.*got -.* with parameters=900",
        ),
        (lambda: SequenceModel.tokens(0, LSTM, dim=8), "`dim` and `size` must be at least 1"),
        (lambda: TransformerMixer(12, heads=4), "`heads` must divide `dim` 12 into 4 dimensions or more; got 4"),
        (lambda: TransformerMixer(8, window=0), "`window` must be at least 1; got 0"),
        (lambda: DLinear(8, 3, kernel=4), "`kernel` must be odd"),
        (lambda: DLinear(10, 3)(S), "`mask` must be None and `targets` be given"),
        (lambda: token_surprise(TOKENS, X, site="y"), r'`site` must be an observed site .*The SequenceModel\'s is "x"'),
        (lambda: token_surprise(TOKENS, X, draws=0), "`draws` must be at least 1"),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
