"""Throughput and latency of one replica by load, from profiles."""
