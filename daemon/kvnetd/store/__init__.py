"""Memories on disk, transfers on their way in, and the ledger of names, messages and receipts.

Everything here blocks and is called from the store's own thread. No network, no tensors.
"""
