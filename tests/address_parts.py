"""Queries and slots that the tests of the address share, and whether samples are drawn from given probabilities."""

import math

import torch


def parts(batch=5, slots=37, dim=3, value=4, dtype=torch.float64):
    query, key = 2 * torch.randn(batch, dim, dtype=dtype), torch.randn(slots, dim, dtype=dtype)
    values, log_prior = torch.randn(slots, value, dtype=dtype), torch.randn(slots, dtype=dtype).log_softmax(0)
    mask = torch.rand(slots) < 0.8
    mask[-1] = True
    return query, key, values, log_prior, mask


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
