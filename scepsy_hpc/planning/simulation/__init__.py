"""Traced runs on a plan, call by call: percentiles."""
