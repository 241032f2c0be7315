"""Compares results with their originals: is the text gone, is the rest untouched. Extra ``verify``."""
