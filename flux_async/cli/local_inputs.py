"""Which files of this machine an argument or a row of a list stands for.

An argument may be a file, a folder or a pattern. A folder is read one level deep, in order of name, without
hidden files, and only what ends like a picture; ``**`` in a pattern goes deeper. A row of a list is a file,
relative to the folder of the list, so that a list can travel with its pictures; on standard input, to the
working directory.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable

import click

from flux_async import LocalImage

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_PATH_LIKE = ("/", "./", "../", ".\\", "..\\")


def files_of(argument: str) -> list[str] | None:
    """Return the files that an argument stands for, or None where it may be an address.

    Raises:
        click.UsageError: It is a path or a pattern with nothing behind it.
    """
    if is_address(argument):
        return None
    path = os.path.expanduser(argument)  # noqa: PTH111 - Path() drops what was typed
    if _ask(os.path.isdir, path):
        return _files_in(path)
    if _ask(os.path.exists, path):
        return [path]
    if glob.has_magic(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
        if not found:
            raise click.UsageError(f"{argument} matches no file. Nothing was sent.")
        return found
    if _means_a_file(argument):
        raise click.UsageError(f"{argument}: there is no such file or folder. Nothing was sent.")
    return None


def image_of(argument: str) -> str | LocalImage:
    """Return the one picture that an argument names: an address, or a file.

    Raises:
        click.UsageError: It is a path with no file behind it.
    """
    if is_address(argument):
        return argument
    path = os.path.expanduser(argument)  # noqa: PTH111 - as above
    if not _ask(os.path.isfile, path):
        raise click.UsageError(f"{argument} is neither an http(s) URL nor a file here. Nothing was sent.")
    return LocalImage(path=path)


def row_fault(image: str, folder: str) -> str | None:
    """Say why a row that names a file cannot be used, where it cannot."""
    path = os.path.join(folder, image)  # noqa: PTH118 - Path() may raise
    if _ask(os.path.isfile, path):
        return None
    if _ask(os.path.isdir, path):
        return f"{image} is a folder: give it as an argument"
    return f"there is no file {path}"


def names_a_file(image: str, folder: str) -> bool:
    """Say whether a row names a file, or is meant to, rather than an address or a typing mistake."""
    if is_address(image):
        return False
    return _means_a_file(image) or _ask(os.path.exists, os.path.join(folder, image))  # noqa: PTH118


def is_address(image: str) -> bool:
    """Say whether ``image`` begins like a URL of any kind."""
    return _SCHEME.match(image) is not None


def _means_a_file(text: str) -> bool:
    return text.startswith(_PATH_LIKE) or text.lower().endswith(ENDINGS)


def _files_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(ENDINGS) and entry.name[:1] != "." and entry.is_file()
            )
    except OSError as error:
        raise click.UsageError(f"{folder} cannot be read: {error.strerror or error}.") from None
    if not names:
        raise click.UsageError(f"{folder} holds no {', '.join(ENDINGS)}: nothing was sent.")
    return [os.path.join(folder, name) for name in names]  # noqa: PTH118 - as typed


def _ask(question: Callable[[str], bool], path: str) -> bool:
    try:
        return question(path)
    except ValueError:  # a NUL in it
        return False
