"""Offload: weights are cut into pieces; a plan decides which pieces stay on the device and which are streamed."""
