"""Owners in a recording: those of a flow's two ends as flat columns, owner_kind, owner_pid, ..., peer_owner_netns.

A segment has all of these columns or none: they cost room, and few captures look for owners.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from conntracker.owner import EXACT, KERNEL, NO_ID, PROCESS, Owner, Process

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from duckdb import DuckDBPyConnection

__all__ = [
    "ENDS", "OWNER_COLUMNS", "OWNER_KEYS", "OWNER_WORDS", "known_owners", "owner_json", "owner_number", "owner_value",
    "process_word", "with_owners",
]  # fmt: skip

# The ends of a flow, as raw columns have the numbers of their owners: its source, and its destination behind DNAT.
ENDS = ("owner", "peer_owner")

OWNER_KEYS = tuple(Owner(KERNEL).json())

_FIELDS = Owner.__dataclass_fields__ | Process.__dataclass_fields__
_TYPES = {"int": "UINTEGER", "str": "VARCHAR"}
# Name and SQL type of each, by the type that comes first in its annotation.
KINDS = {name: _TYPES[str(_FIELDS[name].type).partition(" ")[0]] for name in OWNER_KEYS} | {
    "start": "TIMESTAMP", "netns": "UBIGINT",
}  # fmt: skip

_USER_IDS = ("uid", "loginuid")
_TEXTS = tuple(name for name, kind in KINDS.items() if kind == "VARCHAR")

# Name, SQL type, and the expression over with_owners(...), as schema.Segments wants them.
OWNER_COLUMNS = tuple((f"{end}_{name}", kind, f"{end}_{name}") for end in ENDS for name, kind in KINDS.items())


@contextmanager
def known_owners(connection: DuckDBPyConnection, owners: Mapping[int, Owner], numbers: Iterable[int]) -> Iterator[None]:
    """The table with_owners() joins with, as long as the block lasts: the owners of these numbers, if there are.

    Of text that is none (bytes that were no UTF-8, read with surrogates) each surrogate becomes '?'.
    """
    rows = [_row(number, owners[number]) for number in numbers if number in owners]
    lines = "\n".join(['{"number": 0}', *rows]).encode(errors="replace").decode()
    kinds = json.dumps({"number": "UINTEGER"} | KINDS | {"start": "BIGINT"})
    connection.execute(
        f"CREATE TABLE owner_rows AS SELECT unnest(from_json(one, '{kinds}'))"  # noqa: S608
        " FROM (SELECT unnest(string_split($lines, chr(10))) AS one)",
        {"lines": lines},
    )
    try:
        # As enumerations, text is written as what Parquet calls a dictionary without a look at every row's.
        for name in _TEXTS:
            values = f"SELECT DISTINCT {name} FROM owner_rows WHERE {name} IS NOT NULL"  # noqa: S608
            connection.execute(f"CREATE TYPE owner_{name} AS ENUM ({values})")
        columns = ", ".join(f"{_enumerated(name)} AS {name}" for name in ("number", *KINDS))
        connection.execute(f"CREATE TABLE known_owners AS SELECT {columns} FROM owner_rows")  # noqa: S608
        yield
    finally:
        connection.execute("DROP TABLE IF EXISTS known_owners; DROP TABLE owner_rows")
        for name in _TEXTS:
            connection.execute(f"DROP TYPE IF EXISTS owner_{name}")


def _row(number: int, owner: Owner) -> str:
    values = owner.json()
    for name in _USER_IDS:
        if values[name] == NO_ID:
            values[name] = None
    return json.dumps({"number": number} | values, ensure_ascii=False)


def _enumerated(name: str) -> str:
    if name == "start":
        return "make_timestamp(start)"
    return f"{name}::owner_{name}" if name in _TEXTS else name


def with_owners(raw: str) -> str:
    """A table with the raw columns `owner` and `peer_owner`, joined with the known owners."""
    for end in ENDS:
        named = ", ".join(f"{name} AS {end}_{name}" for name in ("number", *KINDS))
        raw += f" LEFT JOIN (SELECT {named} FROM known_owners) ON {end} = {end}_number"  # noqa: S608
    return raw


def process_word(end: str, pid: bool = False) -> str:
    """The expression for 'curl', or 'curl[5057]' with '?' behind it where it may have been another process; '(kernel)'
    and '(forwarded)'.
    """
    number = f", '[', {end}_pid, ']', CASE WHEN {end}_certainty <> '{EXACT}' THEN '?' ELSE '' END" if pid else ""
    return f"CASE WHEN {end}_kind = '{PROCESS}' THEN concat({end}_comm{number}) ELSE '(' || {end}_kind || ')' END"


def owner_value(end: str, name: str) -> str:
    """The expression for what is known of one end's owner: see choices.OWN_NAMES. Users without a name by number."""
    if name in ("user", "login"):
        number = {"user": "uid", "login": "loginuid"}[name]
        return f"coalesce({end}_{name}, {end}_{number}::VARCHAR)"
    return process_word(end) if name == "process" else f"{end}_{name}"


# What the view `flows` has of owners on top of the columns of the files.
OWNER_WORDS = (("process", process_word("owner", pid=True)), ("peer_process", process_word("peer_owner", pid=True)))


def owner_number(end: str) -> str:
    """The expression for a number that tells an owner from others, 0 where none is known."""
    values = ", ".join(f"{end}_{name}" for name in KINDS)
    return f"CASE WHEN {end}_kind IS NULL THEN 0::UBIGINT ELSE hash({values}) END"


def owner_json(end: str) -> str:
    """The expression for an owner as JSON text, with the keys of Owner.json."""
    values = ", ', ', ".join(f"'\"{name}\": ', {_json_value(f'{end}_{name}', kind)}" for name, kind in KINDS.items())
    return f"concat('{{', {values}, '}}')"


def _json_value(column: str, kind: str) -> str:
    text = {
        "TIMESTAMP": f"""strftime({column}, '"%Y-%m-%dT%H:%M:%S.%fZ"')""",
        "VARCHAR": f"to_json({column})::VARCHAR",
    }.get(kind, f"{column}::VARCHAR")
    return f"coalesce({text}, 'null')"
