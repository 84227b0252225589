"""Measurements, run from the checkout: `python -m benchmarks.NAME`. None is a test, and no test is timed."""
