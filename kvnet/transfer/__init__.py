"""The transfer protocol as pure state machines: no I/O, no clock of their own, no tensors."""
