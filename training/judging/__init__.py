"""Judges a trained model: unseen cases, the strict judge, the evaluation and the model's card."""
