"""Benchmarks and the laboratory that makes the embedded default pair."""
