"""Whether samples come from a table of probabilities."""

import math

import torch


def assert_drawn_from(samples, probs):
    """Chi-square within five standard deviations, cells of fewer than five expected pooled, impossible ones empty."""
    draws = len(samples)
    counts = torch.bincount(samples, minlength=len(probs)).double()
    assert counts[probs == 0].sum() == 0
    expected = draws * probs.double()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum().reshape(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(counts) - 1
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees) + 5, (chi_square, degrees)
