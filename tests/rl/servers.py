"""Servers in this process that answer as vLLM and SGLang do, with this engine behind them."""

import asyncio
import base64
import json
import pickle
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from etude.models import checkpoint
from etude.rl.local import LocalSampler
from etude.rl.sampler import Prompt, Sampling
from tests.rl import fakes


def model(seed=0):
    """One layer: what crosses a wire is the same for any number."""
    return fakes.model(seed, num_hidden_layers=1, first_k_dense_replace=0)


class Fake:
    """What a server holds: a model, the label of its weights, and what is wrong with it.

    `faults` maps a path to what its next answers are: a status, `drop` (the connection ends in the
    middle), `slow`, or bytes that are sent as they are.
    """

    def __init__(self, model, label=None):
        self.model, self.label, self.original = model, label, label
        self.faults, self.seen, self.bodies = {}, Counter(), []
        self.lock, self.paused, self.loads = threading.Lock(), False, []
        self.hurt = []

    def answer(self, path, body):
        found = getattr(self, "at_" + path.strip("/").replace("/", "_"), None)
        return (404, {"error": "no such path"}) if found is None else found(body)

    def sample(self, ids, seed, most, temperature, stop):
        with self.lock:
            asked = [Prompt(ids, seed)], Sampling(most, temperature, frozenset(stop))
            return asyncio.run(LocalSampler(self.model).sample(*asked))[0]

    def load(self, path):
        self.loads.append(path)
        self.take(dict(checkpoint.load(path).state_dict()))

    def take(self, state):
        with self.lock:
            self.model.load_state_dict(state)


class FakeVllm(Fake):
    versioned = True

    def at_v1_models(self, body):
        return 200, {"data": [{"id": "policy"}]}

    def at_v1_completions(self, body):
        assert body["model"] == "policy" and body["return_token_ids"] and not self.paused
        how = body["seed"], body["max_tokens"], body["temperature"], body["stop_token_ids"]
        one = self.sample(body["prompt"], *how)
        logprobs = {"tokens": [str(t) for t in one.tokens], "token_logprobs": one.logp}
        choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": one.finish}
        choice |= {"token_ids": one.tokens, "prompt_token_ids": body["prompt"]}
        return 200, {"object": "text_completion", "choices": [choice]}

    def at_weight_info(self, body):
        return (200, {"weight_version": self.label}) if self.versioned else (404, {})

    def at_pause(self, body):
        self.paused = True
        return 200, {"status": "paused"}

    def at_resume(self, body):
        self.paused = False
        return 200, {"status": "resumed"}

    def at_collective_rpc(self, body):
        assert self.paused and body["method"] == "reload_weights"
        self.load(body["kwargs"]["weights_path"])
        return 200, {"results": [None]}

    def at_update_weight_version(self, body):
        self.label = body["new_version"]
        return 200, {"success": True}

    def at_init_weight_transfer_engine(self, body):
        self.phase, self.tensors = "ready" if body["init_info"] == {} else "", {}
        return 200, {"message": ""}

    def at_start_weight_update(self, body):
        assert self.paused and self.phase == "ready"
        self.phase = "open"
        return 200, {}

    def at_update_weights(self, body):
        info = body["update_info"]
        assert self.phase == "open"
        handles = pickle.loads(base64.b64decode(info["ipc_handles_pickled"]))
        for name, shape, handle in zip(info["names"], info["shapes"], handles, strict=True):
            [(make, args)] = handle.values()
            self.tensors[name] = make(*args).clone()
            assert list(self.tensors[name].shape) == shape
        return 200, {}

    def at_finish_weight_update(self, body):
        self.phase, self.label = "ready", body["weight_version"]
        return 200, {}


class FakeSglang(Fake):
    def at_server_info(self, body):
        return 200, {"tp_size": 1}

    def at_generate(self, body):
        how, n = body["sampling_params"], len(body["input_ids"])
        assert body["return_logprob"] and not how.get("ignore_eos")
        asked = how["sampling_seed"], how["max_new_tokens"], how["temperature"]
        one = self.sample(body["input_ids"], *asked, how["stop_token_ids"])
        rows = [[logp, id, None] for logp, id in zip(one.logp, one.tokens, strict=True)]
        meta = {"output_token_logprobs": rows, "finish_reason": {"type": one.finish}}
        return 200, {"meta_info": meta | {"prompt_tokens": n, "weight_version": self.label}}

    def at_update_weights_from_disk(self, body):
        self.load(body["model_path"])
        self.label = body["weight_version"]
        return 200, {"success": True, "message": ""}

    def at_update_weights_from_tensor(self, body):
        self.tensors = getattr(self, "tensors", {})
        [text] = body["serialized_named_tensors"]
        self.tensors |= dict(pickle.loads(base64.b64decode(text)))
        self.label = body.get("weight_version", self.label)
        return 200, {"success": True, "message": ""}


@contextmanager
def serving(fake):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            self.reply(json.loads(self.rfile.read(size) or "null"))

        def reply(self, body):
            path = self.path.partition("?")[0]
            fake.seen[path] += 1
            fake.bodies.append((path, body))
            fault = fake.faults[path].pop(0) if fake.faults.get(path) else None
            if fault == "drop":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"half": ')
                self.close_connection = True
                return
            if fault == "slow":
                threading.Event().wait(1.3)
            if isinstance(fault, int):
                status, found = fault, {"error": "no luck"}
            elif callable(fault):
                status, found = fault(fake, body)
            else:
                try:
                    status, found = fake.answer(path, body)
                except Exception as error:
                    fake.hurt.append(error)
                    status, found = 400, {"error": repr(error)}
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.02,)).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
