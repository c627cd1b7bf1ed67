"""Fitting, judging and applying maps from one model's rows to another's."""
