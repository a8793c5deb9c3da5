"""The order desk as an MCP server over stdio: `python -m etude.rl.servers.desk`.

Each call names its database file, so that one process serves any number of attempts and a process
that is started again finds everything as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from etude.data.sim_desk import Desk


@contextmanager
def _open(session: str) -> Iterator[Desk]:
    """Open an attempt's database, which must be there."""
    desk = Desk.opened(session)
    try:
        yield desk
    finally:
        desk.close()


def stock(session: str, item: str) -> str:
    """Pieces in stock."""
    with _open(session) as desk:
        return desk.stock(item)


def order(session: str, item: str, count: int) -> str:
    """Order pieces."""
    with _open(session) as desk:
        return desk.order(item, count)


def status(session: str, number: int) -> str:
    """Show an order."""
    with _open(session) as desk:
        return desk.status(number)


def cancel(session: str, number: int) -> str:
    """Cancel an order."""
    with _open(session) as desk:
        return desk.cancel(number)


def note(session: str, text: str) -> str:
    """Write a note."""
    with _open(session) as desk:
        return desk.note(text)


def main() -> None:
    """Serve until the client goes."""
    from mcp.server import MCPServer

    server = MCPServer("desk", log_level="ERROR")
    for tool in (stock, order, status, cancel, note):
        server.add_tool(tool, structured_output=False)
    server.run()


if __name__ == "__main__":
    main()
