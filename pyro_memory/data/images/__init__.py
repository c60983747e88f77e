"""Labelled images: embedded, downloaded, or varied."""
