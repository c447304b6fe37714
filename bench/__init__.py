"""Benchmarks: scenarios, peers and the report. Run and read, never asserted."""
