"""A model's address for programs that bring their own loop: each request waits for the policy.

Frameworks in which the environment calls the model (over HTTP, in the shape of OpenAI's chat
completions, whole or streamed) are turned round here: a request that comes in is what the policy
sees next, and its turn is the answer. Server and framework run in one thread with a loop of its
own, so that they outlast the loops in which rollouts are played.
"""

import asyncio
import itertools
import json
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from etude.rl.environment import Chat
from etude.text.turns import Message

MAX_BODY = 1 << 24  # bytes of a request


@dataclass(slots=True, eq=False)
class Request:
    """A completion that a program waits for.

    Args:
        messages: the whole conversation.
        tools: function descriptions, or None.
        answer: takes the policy's turn.
    """

    messages: Chat
    tools: list[dict[str, Any]] | None
    answer: "asyncio.Future[dict[str, Any]]"


@dataclass(slots=True, eq=False)
class Line:
    """One attempt's address, and what has come in there."""

    key: str
    url: str
    requests: "asyncio.Queue[Request]" = field(default_factory=asyncio.Queue)


class Host:
    """A server on this machine alone, and a thread in which programs run.

    Attributes:
        stack: contexts to leave when it closes; enter them inside `run`.
    """

    def __init__(self) -> None:
        self.loop, self.stack = asyncio.new_event_loop(), AsyncExitStack()
        self.lines: dict[str, Line] = {}
        self._count = itertools.count()
        self._thread = threading.Thread(target=self.loop.run_forever, name="host", daemon=True)
        self._thread.start()
        self._server = self.wait(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._port = self._server.sockets[0].getsockname()[1]

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run in the host's thread, and wait without a loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run in the host's thread, from any loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def line(self) -> Line:
        """Open an address; call it in the host's thread."""
        key = f"a{next(self._count)}"
        self.lines[key] = Line(key, f"http://127.0.0.1:{self._port}/{key}/v1")
        return self.lines[key]

    def close(self) -> None:
        """End what runs in the thread, and the thread."""
        self.wait(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.stack.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, then close the connection."""
        try:
            status, kind, body = await self._reply(reader)
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the program went away, and its attempt ends by its own account
        finally:
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *rest = head.split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in rest if ": " in line)
            size = int(fields.get("content-length", 0))
            key, _, path = first.split()[1].strip("/").partition("/")
            if size > MAX_BODY or key not in self.lines or path != "v1/chat/completions":
                raise ValueError("POST /ATTEMPT/v1/chat/completions is all there is")
            asked = json.loads(await reader.readexactly(size))
            request = Request(asked["messages"], asked.get("tools"), self.loop.create_future())
        except (ValueError, KeyError, TypeError, asyncio.LimitOverrunError) as error:
            told = json.dumps({"error": {"message": f"{type(error).__name__}: {error}"}})
            return "400 Bad Request", "application/json", told.encode()
        self.lines[key].requests.put_nowait(request)
        message = await request.answer
        whole = _completion(asked.get("model", "policy"), message)
        if asked.get("stream"):
            return "200 OK", "text/event-stream", _streamed(whole)
        return "200 OK", "application/json", json.dumps(whole).encode()


def spoken(reply: Message) -> dict[str, Any]:
    """Return a policy's turn as a chat completion's message."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.content or ""}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id or f"call_{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for place, call in enumerate(reply.tool_calls)
        ]
    return message


def _completion(model: str, message: dict[str, Any]) -> dict[str, Any]:
    finish = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    whole = {"id": "policy", "object": "chat.completion", "created": 0, "model": model}
    return whole | {"choices": [choice], "usage": usage}


def _streamed(whole: dict[str, Any]) -> bytes:
    """Return a completion as one event with all of it, and the end."""
    choice = whole["choices"][0]
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(delta["tool_calls"])]
    part = {"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}
    event = whole | {"object": "chat.completion.chunk", "choices": [part]}
    return f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
