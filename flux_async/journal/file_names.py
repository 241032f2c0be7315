"""Which job of a journal has which file name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flux_async.models import JobKey

if TYPE_CHECKING:
    import sqlite3

_TAKE = "INSERT OR IGNORE INTO file_name (folded, job) VALUES (?, ?)"
_OWNER = "SELECT job.number, job.key FROM file_name JOIN job ON job.number = file_name.job WHERE folded = ?"
_GIVE_BACK = (
    "DELETE FROM file_name WHERE job = ? AND folded <> ? "
    "AND (SELECT file FROM job WHERE number = file_name.job) IS NULL"
)


def take_names(connection: sqlite3.Connection, names: Mapping[int, str]) -> dict[int, JobKey]:
    """Give each job, by its number, its name; a job without a file gives its earlier names back.

    Args:
        connection: The journal.
        names: Names as disks compare them.

    Returns:
        The jobs whose names others have, each with the key of the other.
    """
    taken = {}
    for number, name in names.items():
        connection.execute(_GIVE_BACK, (number, name))
        connection.execute(_TAKE, (name, number))
        owner, key = connection.execute(_OWNER, (name,)).fetchone()
        if owner != number:
            taken[number] = JobKey(key)
    return taken
