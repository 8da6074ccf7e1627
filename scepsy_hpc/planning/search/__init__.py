"""Exact search over allocations, and their placement."""
