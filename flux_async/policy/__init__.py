"""Decisions: facts, a time and a random draw in; a number of seconds or a yes or no out.

Nothing here sleeps, reads a clock or draws a random number: the caller brings all three.
"""
