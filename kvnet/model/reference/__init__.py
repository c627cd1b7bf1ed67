"""Three tiny reference models and the templated world they were trained on. Imports no torch."""
