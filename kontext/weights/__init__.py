"""Weights of a model: the layout of its files, their checks, and reading them into the networks."""
