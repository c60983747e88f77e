"""Sources of batches: what model and guide are called with."""
