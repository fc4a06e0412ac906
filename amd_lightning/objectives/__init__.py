"""Distances between policies as pure functions of tensors."""
