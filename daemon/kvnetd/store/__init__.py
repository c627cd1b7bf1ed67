"""Memories on disk, transfers on their way in, and the ledger of names, messages and receipts.

What writes is called from the store's own thread; what only reads may run beside it. Everything
blocks. No network, no tensors.
"""
