"""The parts of scripts/mutate_verifier."""
