"""Examples, their sources and the loaders that feed a run."""
