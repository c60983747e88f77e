"""Accelerated public functions. Empty until the first kernel lands: it may import torch and triton only."""
