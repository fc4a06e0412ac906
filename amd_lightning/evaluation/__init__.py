"""Decoding, task metrics and distances on fixed held-out states."""
