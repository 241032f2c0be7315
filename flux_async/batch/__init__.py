"""Thousands of jobs: one outcome each, whatever happens in between."""
