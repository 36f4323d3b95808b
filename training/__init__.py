"""How the bundled model is made: drawn scenes, sentences about them, and the training of `kontext`'s networks."""
