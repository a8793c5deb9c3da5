"""A small order desk in SQLite: stock, orders and notes, changed by five tools.

One class serves the worked solutions of `etude.data.tasks_desk`, which run it in memory, and the
MCP server of `etude.rl.servers.desk`, which opens one database file per attempt.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLES = """
PRAGMA synchronous=OFF;
PRAGMA journal_mode=MEMORY;
CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE orders (number INTEGER PRIMARY KEY, item TEXT, count INTEGER, open INTEGER);
CREATE TABLE notes (number INTEGER PRIMARY KEY, text TEXT);
"""
NOTES = 20  # notes a desk takes
LONGEST = 200  # characters of a note


class Desk:
    """Stock, orders and notes behind a connection.

    What cannot be done is answered with one line that begins with `error:`, and changes nothing.
    """

    def __init__(self, connection: sqlite3.Connection):
        self.connection = connection

    @classmethod
    def new(cls, path: str, start: Mapping[str, Any]) -> "Desk":
        """Lay out a database (`:memory:` or a new file) from `stock` and `orders` of a task."""
        desk = cls(sqlite3.connect(path))
        desk.connection.executescript(TABLES)
        desk.connection.executemany("INSERT INTO stock VALUES (?, ?)", start["stock"])
        desk.connection.executemany("INSERT INTO orders VALUES (?, ?, ?, 1)", start["orders"])
        desk.connection.commit()
        return desk

    @classmethod
    def opened(cls, path: str) -> "Desk":
        """Open a database that is there.

        Raises:
            sqlite3.OperationalError: it is not.
        """
        uri = f"{Path(path).absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True)
        connection.execute("PRAGMA synchronous=OFF")
        return cls(connection)

    def stock(self, item: str) -> str:
        """Pieces in stock."""
        row = self._row("SELECT count FROM stock WHERE item = ?", item)
        return str(row[0]) if row else f"error: no {item[:20]}"

    def order(self, item: str, count: int) -> str:
        """Order pieces."""
        row = self._row("SELECT count FROM stock WHERE item = ?", item)
        if not row:
            return f"error: no {item[:20]}"
        if not 0 < count <= row[0]:
            return f"error: {row[0]} in stock"
        [number] = self._row("SELECT coalesce(max(number), 10) + 1 FROM orders") or (11,)
        self._do("UPDATE stock SET count = count - ? WHERE item = ?", count, item)
        self._do("INSERT INTO orders VALUES (?, ?, ?, 1)", number, item, count)
        self.connection.commit()
        return f"order {number}"

    def status(self, number: int) -> str:
        """Show an order."""
        row = self._order(number)
        return f"{row[1]} {row[0]}{'' if row[2] else ' cancelled'}" if row else self._none(number)

    def cancel(self, number: int) -> str:
        """Cancel an order."""
        row = self._order(number)
        if not row or not row[2]:
            return self._none(number)
        self._do("UPDATE stock SET count = count + ? WHERE item = ?", row[1], row[0])
        self._do("UPDATE orders SET open = 0 WHERE number = ?", number)
        self.connection.commit()
        return "ok"

    def note(self, text: str) -> str:
        """Write a note."""
        [count] = self._row("SELECT count(*) FROM notes") or (0,)
        if count >= NOTES or len(text) > LONGEST:
            return "error: no room"
        self._do("INSERT INTO notes (text) VALUES (?)", text)
        self.connection.commit()
        return "ok"

    def state(self) -> dict[str, list[list[Any]]]:
        """Return all rows of all tables, in their order."""
        tables = {"stock": "item", "orders": "number", "notes": "number"}
        rows = {
            name: self.connection.execute(f"SELECT * FROM {name} ORDER BY {key}").fetchall()
            for name, key in tables.items()
        }
        return {name: [list(row) for row in found] for name, found in rows.items()}

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _order(self, number: int) -> tuple[Any, ...] | None:
        return self._row("SELECT item, count, open FROM orders WHERE number = ?", number)

    def _row(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        return self.connection.execute(query, values).fetchone()

    def _do(self, query: str, *values: Any) -> None:
        self.connection.execute(query, values)

    def _none(self, number: int) -> str:
        return f"error: no open order {number}"
