"""gRPC around the transfer sessions. Knows frames and deadlines; no files, no tensors.

`security` makes credentials from keys, `gate` asks the trust list, `doorman` stands in front of every call;
nothing else knows what a channel is.
"""
