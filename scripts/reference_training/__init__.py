"""How the reference models are made: tokenizers, curriculum, initialisation, training, measuring."""
