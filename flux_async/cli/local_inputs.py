"""Which files of this machine an argument or a row of a list stands for.

An argument may be a file, a folder or a pattern. A folder is read one level deep, in order of name, without
hidden files, and only what ends like a picture; ``**`` in a pattern goes deeper, through links too, into each
folder once. A row of a list is a file, relative to the folder of the list, so that a list can travel with its
pictures; on standard input, to the working directory.

What is there but cannot be read, such as a link that leads nowhere, is passed on, to fail alone and be told.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator

import click

from flux_async import LocalImage
from flux_async.cli.printable import printable

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
        found = sorted({name for name in _matches(path) if not os.path.isdir(name)})  # noqa: PTH112
        if not found:
            raise click.UsageError(f"{printable(argument)} matches no file. Nothing was sent.")
        return found
    if _means_a_file(argument):
        raise click.UsageError(f"{printable(argument)}: {_why_not(path)}. Nothing was sent.")
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
        why = "it is a folder" if _ask(os.path.isdir, path) else _why_not(path)
        raise click.UsageError(
            f"{printable(argument)} is neither an http(s) URL nor a file here: {why}. Nothing was sent."
        )
    return LocalImage(path=path)


def row_fault(image: str, folder: str) -> str | None:
    """Say why a row that names a file cannot be used, where it cannot."""
    path = os.path.join(folder, image)  # noqa: PTH118 - Path() may raise
    if _ask(os.path.isfile, path):
        return None
    if _ask(os.path.isdir, path):
        return f"{image} is a folder: give it as an argument"
    return f"{path}: {_why_not(path)}"


def names_a_file(image: str, folder: str) -> bool:
    """Say whether a row names a file, or is meant to, rather than an address or a typing mistake."""
    if is_address(image, folder):
        return False
    return _means_a_file(image) or _ask(os.path.exists, os.path.join(folder, image))  # noqa: PTH118


def is_address(image: str, folder: str = "") -> bool:
    """Say whether ``image`` begins like a URL of any kind, and is no file like ``scan:1.jpg``."""
    if "://" in image or image[:5].lower() == "data:":
        return True
    return _SCHEME.match(image) is not None and not _ask(os.path.lexists, os.path.join(folder, image))  # noqa: PTH118


def _means_a_file(text: str) -> bool:
    return text.startswith(_PATH_LIKE) or text.lower().endswith(ENDINGS)


def _files_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(ENDINGS) and entry.name[:1] != "." and not _is_folder(entry)
            )
    except OSError as error:
        raise click.UsageError(f"{printable(folder)} cannot be read: {error.strerror or error}.") from None
    if not names:
        raise click.UsageError(f"{printable(folder)} holds no {', '.join(ENDINGS)}: nothing was sent.")
    return [os.path.join(folder, name) for name in names]  # noqa: PTH118 - as typed


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _matches(pattern: str) -> Iterator[str]:
    """Yield what a pattern matches. ``**`` is walked here: glob would go round links that lead back."""
    separators = f"[{re.escape(os.sep + (os.altsep or ''))}]"
    found = re.search(rf"(?:^|(?<={separators}))\*\*(?:{separators}+|$)", pattern)
    if found is None:
        yield from glob.iglob(pattern)  # noqa: PTH207 - as typed
        return
    before, after = pattern[: found.start()], pattern[found.end() :] or "*"
    for top in glob.iglob(before) if before else [""]:  # noqa: PTH207 - as above
        for folder in _folders_under(top):
            yield from _matches(os.path.join(glob.escape(folder), after))  # noqa: PTH118 - as above


def _folders_under(top: str) -> Iterator[str]:
    """Yield ``top`` and the folders in it that are not hidden, each once, whatever links lead to it."""
    seen = set()
    for folder, within, _ in os.walk(top or ".", followlinks=True):
        here = os.stat(folder)  # noqa: PTH116 - as above
        if (here.st_dev, here.st_ino) in seen:
            within.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        within[:] = sorted(name for name in within if name[:1] != ".")
        yield folder if top else folder[2:]  # without the "./" that nobody typed


def _why_not(path: str) -> str:
    """Say why there is nothing at ``path``."""
    try:
        os.stat(path)  # noqa: PTH116 - Path() may raise
    except FileNotFoundError:
        return "there is no such file or folder"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return "it is no plain file"


def _ask(question: Callable[[str], bool], path: str) -> bool:
    try:
        return question(path)
    except ValueError:  # a NUL in it
        return False
