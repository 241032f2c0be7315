"""What a terminal may be sent: it obeys, and names of files and words of strangers come into messages."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return ``text`` with whatever would move a cursor, turn letters round or begin a line spelled out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
