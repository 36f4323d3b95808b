"""A model's files: where they lie, what is in them, and how they reach the networks."""
