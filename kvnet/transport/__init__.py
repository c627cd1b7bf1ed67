"""gRPC around the transfer sessions. Knows frames and deadlines; no files, no tensors, no policy.

Mutual TLS slots in at two places, `client.PeerClient` and `server.PeerServer`; nothing above them knows
what a channel is.
"""
