"""Weights in less memory than they have: cut into pieces, kept or streamed by a plan."""
