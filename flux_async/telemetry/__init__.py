"""Observers of the event stream that come with the package."""
