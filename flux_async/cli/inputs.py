"""Which pictures are meant: what was typed, and what came through standard input."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

import click

STDIN = "-"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_PATH_LIKE = ("/", "./", "../", "~", ".\\", "..\\")


def gather_images(arguments: Iterable[str], lines: Iterable[str]) -> list[str]:
    """Return the image addresses in order, ``-`` replaced by those in ``lines``.

    Args:
        arguments: As typed.
        lines: Standard input, one address a line; blank lines and lines that begin with ``#`` are skipped.

    Raises:
        click.UsageError: There are none, or one is a file or folder of this machine.
    """
    images = list(_expand(arguments, lines))
    if not images:
        raise click.UsageError("Give the URL of at least one image, or - to read URLs from standard input.")
    for image in images:
        refuse_local(image)
    return images


def refuse_local(image: str) -> None:
    """Refuse a path of this machine.

    Raises:
        click.UsageError: It is one.
    """
    if is_local(image):
        raise click.UsageError(
            f"{image} is a local file or folder: the API takes public http(s) URLs, and local files are not "
            "supported yet. Nothing was sent."
        )


def is_local(image: str) -> bool:
    """Say whether ``image`` names a file or folder here, rather than a web address or a typing mistake."""
    if image[:5].lower() == "file:" or image.startswith(_PATH_LIKE):
        return True
    return os.path.exists(image) if not _SCHEME.match(image) else False  # noqa: PTH110 - Path() may raise


def _expand(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    for argument in arguments:
        if argument != STDIN:
            yield argument
            continue
        for line in lines:
            text = line.lstrip("\ufeff").strip()
            if text and not text.startswith("#"):
                yield text
