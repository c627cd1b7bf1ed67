"""Memory files on disk: read by their sections, written whole or not at all. No tensors, no network."""
