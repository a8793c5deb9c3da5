"""A bare MCP server whose tools misbehave; it speaks the protocol by hand, so it starts at once."""

import json
import os
import sys
import time

TOOLS = ("good", "hang", "flood", "wrong", "die", "pid")


def answer(method, params):
    if method == "initialize":
        info = {"name": "odd", "version": "1"}
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        schema = {"type": "object", "properties": {"word": {"type": "string", "title": "Word"}}}
        named = {"description": "Odd.\nMore words.", "inputSchema": schema}
        return {"tools": [{"name": name} | named for name in TOOLS]}
    return call(params["name"]) if method == "tools/call" else {}


def call(name):
    if name == "hang":
        time.sleep(60)
    if name == "die":
        os._exit(1)
    texts = {"flood": "x" * 100_000, "wrong": "no such thing", "pid": str(os.getpid())}
    content = [{"type": "text", "text": texts.get(name, "fine")}]
    return {"content": content, "isError": name == "wrong"}


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        reply = {"jsonrpc": "2.0", "id": asked["id"]}
        if asked["method"] == "tools/call" and asked["params"]["name"] not in TOOLS:
            reply["error"] = {"code": -32602, "message": "Unknown tool"}
        else:
            reply["result"] = answer(asked["method"], asked.get("params") or {})
        print(json.dumps(reply), flush=True)
