"""Requests to a server: bounded, repeated with growing pauses, and named when it is dead."""

import asyncio
from types import ModuleType, TracebackType
from typing import Any, Self

from etude.errors import EtudeError

PAUSE, LONGEST = 0.5, 10.0  # seconds before the first further try, and at most
BUSY = 429


class Refused(EtudeError):
    """The server has answered, and will not do what was asked; `status` is its HTTP status."""

    def __init__(self, where: str, status: int, said: str):
        super().__init__(where, f"answers {status} ({said})", do="see its log", code=1)
        self.status = status


class Client:
    """JSON over HTTP to one server, inside one event loop.

    A request is repeated after a broken connection, a time-out, 429 and 5xx: all that is asked here
    has the same effect when asked twice.

    Args:
        url: of the server, without a path.
        concurrent: requests under way at once.
        seconds: a request that takes longer is tried again.
        retries: further tries.
        pause: seconds before the first of them; each further one waits twice as long.

    Raises:
        EtudeError: httpx2 is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrent: int = 64,
        seconds: float = 600.0,
        retries: int = 5,
        pause: float = PAUSE,
    ):
        self.url, self.retries, self.pause = url.rstrip("/"), retries, pause
        self.seconds, self._http = seconds, _library()
        self._gate = asyncio.Semaphore(concurrent)
        limits = self._http.Limits(max_connections=concurrent)
        self._client = self._http.AsyncClient(timeout=seconds, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Any:
        """Return what a path holds, as `post`."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: Any = None) -> Any:
        """Send `body` as JSON and return the answer's JSON; None where it is none.

        Raises:
            Refused: any other status than 2xx, 429 and 5xx.
            EtudeError: no answer after all tries; the last fault is named.
        """
        return await self._ask("POST", path, body)

    async def maybe(self, path: str, body: Any = None) -> Any:
        """As `get`, or `post` of a `body`; None where the server has no such path."""
        try:
            return await (self.get(path) if body is None else self.post(path, body))
        except Refused as refused:
            if refused.status in (404, 405):
                return None
            raise

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        fault = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(self.pause * 2 ** (attempt - 1), LONGEST))
            try:
                async with self._gate:
                    reply = await self._client.request(method, self.url + path, json=body)
            except self._http.TimeoutException:
                fault = f"no answer within {self.seconds:g} s"
                continue
            except self._http.TransportError as error:
                fault = f"{type(error).__name__}: {error}".removesuffix(": ")
                continue
            if reply.status_code == BUSY or reply.status_code >= 500:
                fault = f"answers {reply.status_code} ({_said(reply.text)})"
                continue
            if not reply.is_success:
                raise Refused(self.url + path, reply.status_code, _said(reply.text))
            return _json(reply)
        found = f"gave up after {self.retries + 1} tries, the last: {fault}"
        do = "see whether it runs; the same command goes on from the last save"
        raise EtudeError(self.url + path, found, do=do, code=1)


def _library() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        do = "pip install 'etude[rl]'"
        raise EtudeError("engine.url", "needs httpx2, which is not here", do=do) from error
    return httpx2


def _said(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _json(reply: Any) -> Any:
    try:
        return reply.json()
    except ValueError:  # some paths answer with nothing
        return None
