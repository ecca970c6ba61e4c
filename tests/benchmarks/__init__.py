"""Measurements of speed and memory. Most modules are commands: `python -m tests.benchmarks.NAME`."""
