"""Bytes and headers: strict JSON, the chunk envelope, byte compression. No tensors, no keys, no sockets."""
