"""Bytes to models and back: no clock, no socket, no disk."""
