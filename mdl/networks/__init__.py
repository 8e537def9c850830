"""Blocks, the one network class, its controllers, and what they cost."""
