"""Stands in for the worker where the model does not matter."""
