"""Making of the bundled model: drawn scenes, sentences about them, and the training of `kontext`'s networks."""
