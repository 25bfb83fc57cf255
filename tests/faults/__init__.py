"""Faults planted into durable runs: what makes them (shim.c), and what looks at how a run takes them (harness.py)."""
