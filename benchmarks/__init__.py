"""Measurements behind the project's claims; results.md holds their figures."""
