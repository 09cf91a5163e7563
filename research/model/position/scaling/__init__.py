"""Speeds of rotary planes for texts longer than those of pretraining.

Each member's `make(cfg, base, d, longest)` gives the radians a position of the d/2 planes, float32 [d/2] or [B, 1, 1, d/2] where they
depend on the row, and a factor of queries and keys. `longest` is each row's largest position + 1, int32 [B, 1, 1, 1].
"""
