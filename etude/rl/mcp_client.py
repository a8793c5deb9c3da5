"""A program that serves tools by the Model Context Protocol over stdio, warm for many attempts.

The server is started once (about two seconds) and again when it has died or hung. It has one call
at a time: were two under way when it hung, nobody could say which of them had been done. The client
runs in a thread with a loop of its own, so that it outlasts the loops in which rollouts are played.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from etude.data.tools_served import HIDDEN, terse
from etude.errors import EtudeError
from etude.rl.toolbox import ToolFailure

START = 60.0  # seconds within which a server must have begun
IDLE = 0.5  # seconds without a call after which a server is asked whether it lives
MOST = 2000  # characters of a result that are read


class Server:
    """One server process and the session with it.

    Args:
        name: for messages.
        command: the program and its arguments.
        env: what its environment has more than this one's basics.
        seconds: a call that takes longer has failed, and the server is started again.
        most: characters of a result; what is longer is cut, and says so.

    Attributes:
        starts: how often it was started.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        seconds: float = 5.0,
        most: int = MOST,
    ):
        self.name, self.command, self.env = name, list(command), dict(env or {})
        self.seconds, self.most, self.starts = seconds, most, 0
        self.loop = asyncio.new_event_loop()
        self._session: Any = None
        self._last = 0.0
        self._stop = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._one = asyncio.Lock()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def listed(self) -> list[dict[str, Any]]:
        """Return the server's tools as short function descriptions.

        Raises:
            EtudeError: the server does not start.
        """
        return asyncio.run_coroutine_threadsafe(self._list(), self.loop).result()

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool from any loop, and return its text; its own errors begin with `error:`.

        Raises:
            ToolFailure: no such tool, no answer in time, or the server died.
            EtudeError: the server does not start.
        """
        return await self._aside(self._call(tool, dict(arguments)))

    def close(self) -> None:
        """End the server and the thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _aside(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def _list(self) -> list[dict[str, Any]]:
        async with self._one:
            tools = (await (await self._ready()).list_tools()).tools
        return [terse(tool.name, tool.description or "", schema_of(tool)) for tool in tools]

    async def _call(self, tool: str, arguments: dict[str, Any]) -> str:
        async with self._one:
            session = await self._ready()
            self._last = self.loop.time()
            try:
                async with asyncio.timeout(self.seconds):
                    result = await session.call_tool(tool, arguments)
            except TimeoutError:
                await self._end()
                raise ToolFailure(f"{tool} gave no answer in {self.seconds:g} s") from None
            except asyncio.CancelledError:  # nobody waits any more, and nobody knows what it does
                await self._end()
                raise
            except Exception as error:  # the protocol's own, or whatever a broken pipe becomes
                if not _refused(error):
                    await self._end()
                raise ToolFailure(f"{tool}: {type(error).__name__}: {str(error)[:200]}") from None
        return self._text(result)

    def _text(self, result: Any) -> str:
        failed = getattr(result, "is_error", None) or getattr(result, "isError", False)
        text = "\n".join(part.text for part in result.content if getattr(part, "text", None))
        if len(text) > self.most:
            text = f"{text[: self.most]} ... cut"
        return f"error: {text}" if failed and not text.startswith("error:") else text

    async def _ready(self) -> Any:
        """Return the session, of a server started now where there is none.

        One that has been idle is asked first: had it died since, no call would be to blame.
        """
        if self._life is not None and self.loop.time() - self._last > IDLE:
            try:
                async with asyncio.timeout(self.seconds):
                    await self._session.send_ping()
            except Exception:
                await self._end()
        if self._life is None or self._life.done():
            began = self.loop.create_future()
            self._stop = asyncio.Event()
            self._life = self.loop.create_task(self._live(began, self._stop))
            self._session = await began
            self.starts += 1
        return self._session

    async def _live(self, began: "asyncio.Future[Any]", stop: asyncio.Event) -> None:
        """Hold the process from its start to its end, in one task as the client demands."""
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client

        how = StdioServerParameters(
            command=self.command[0], args=self.command[1:], env=_basics() | self.env
        )
        try:
            with Path(os.devnull).open("w") as quiet:  # a server's log is not ours
                async with (
                    stdio_client(how, errlog=quiet) as streams,
                    ClientSession(*streams) as session,
                ):
                    async with asyncio.timeout(START):
                        await session.initialize()
                    began.set_result(session)
                    await stop.wait()
        except BaseException as error:
            if began.done():
                return  # it ended badly, and the next call starts another
            found = f"{type(error).__name__}: {str(error)[:200]}"
            do = f"try `{' '.join(self.command)}`"
            began.set_exception(
                EtudeError(f"server {self.name}", found, "a server that starts", do)
            )

    async def _end(self) -> None:
        if self._life is not None:
            self._stop.set()
            await asyncio.wait({self._life})
            self._life = None


def schema_of(tool: Any) -> dict[str, Any]:
    """Return the argument schema of a listed tool; before mcp 2 it was `inputSchema`."""
    found = getattr(tool, "input_schema", None)
    return found if found is not None else tool.inputSchema


def _refused(error: Exception) -> bool:
    """Whether the server itself answered with a protocol error, and lives."""
    inner = getattr(error, "error", error)
    code = getattr(inner, "code", None)
    return code is not None and -32700 <= code <= -32600


def _basics() -> dict[str, str]:
    """What every server gets: where programs and this package are, and one thread."""
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    basics = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return basics | {"PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}


def program(kind: str, module: str, *arguments: str) -> list[str]:
    """Return the command of a server that is a Python module.

    Raises:
        EtudeError: the module, or the package `mcp`, is not installed.
    """
    for needed in ("mcp", module):
        if find_spec(needed.partition(".")[0]) is None:
            where, do = f"environment mcp:{kind}", "pip install 'etude[rl]'"
            raise EtudeError(where, f"{needed} is not installed", do=do)
    return [sys.executable, "-m", module, *arguments]


def visible_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments without those that only the environment fills in."""
    return {name: value for name, value in arguments.items() if name not in HIDDEN}
