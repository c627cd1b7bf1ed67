"""gRPC around the transfer sessions. Knows frames and deadlines; no files, no tensors, no policy.

Mutual TLS slots in at two places, `client.dial` and `server.serve_peers`; nothing above them knows
what a channel is.
"""
