"""Scenes, edits and sentences that the bundled model learns from."""
