"""Text and series."""
