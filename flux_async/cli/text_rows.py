"""Reads plain text, one image a line, also as people and Markdown write lists.

An address is taken out of what stands around it where that is certain: a list mark, a link, quotation marks,
a comment. Otherwise the line stays as it is and is refused with what is in it, because an address that holds
a blank would be cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from flux_async.cli.given import InputRow
from flux_async.cli.list_rows import AT_THE_ENDS

_PLAIN = re.compile(r"https?://[!-~]+")
_MARK = re.compile(r"(?:[-*+\u2022>]|[0-9]{1,7}[.)])[\s\u200b]+(?=[!\[<\"'`]|https?://)", re.IGNORECASE)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?(https?://\S*?)>?(?:\s+[\"'(].*)?\s*\)", re.IGNORECASE)
_WRAPPED = re.compile(r"[<\"'`](https?://[^\s<>\"'`]+)[>\"'`][,;]?", re.IGNORECASE)
_COMMENTED = re.compile(
    r"(https?://\S+?)[,;]?(?:[ \u00a0]*\t|(?<=\.jpg|\.png)\s+#|(?<=\.jpeg|\.webp)\s+#|\s+#(?=\s|$))(.*)",
    re.IGNORECASE | re.DOTALL,
)


def text_rows(source: str, lines: Iterable[str]) -> Iterator[InputRow]:
    """Yield the rows of a text file; blank lines and comments are none."""
    for number, line in enumerate(lines, start=1):
        text = line.strip(AT_THE_ENDS)
        if text and not text.startswith("#"):
            yield InputRow(source=source, line=number, image=image_in(text))


def image_in(text: str) -> str:
    """Return the address in a line, without list marks, link syntax and comments, or the line as it is."""
    if _PLAIN.fullmatch(text):
        return text
    rest = text[found.end() :] if (found := _MARK.match(text)) else text
    for form in (_LINK, _WRAPPED):
        if (found := form.fullmatch(rest)) is not None:
            return found[1]
    if (found := _COMMENTED.fullmatch(rest)) is not None and "://" not in found[2]:
        return found[1]
    return rest
