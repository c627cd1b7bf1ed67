"""What the daemon does when asked: one module per verb, each a function of Services and a request.

They know the store, the model host and the peers; they know nothing of protobuf or of the CLI.
"""
