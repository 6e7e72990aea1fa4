"""Benchmarks of fdjax against its peers, one claim a module."""
