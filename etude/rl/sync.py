"""New weights for a server elsewhere, under their published names, by the server's own paths.

| `sync:` | server | how |
|-|-|-|
| `checkpoint` | both | a folder in the published layout that both sides see, loaded by the server |
| `transfer` | vLLM | the memory of the same GPU, handed over by its weight-transfer endpoints |
| `tensors` | SGLang | the tensors themselves, in the request |

vLLM's paths exist only with VLLM_SERVER_DEV_MODE=1. Each names the weights with `version`, which
the server then reports.
"""

import base64
import pickle
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from etude.errors import EtudeError
from etude.models.checkpoint import save, spelled
from etude.nn.decoder import Decoder
from etude.recipe.engines import Remote
from etude.rl.remote_http import Client, Refused
from etude.rl.remote_servers import Dialect
from etude.text.tokenizer import Tokenizer
from etude.weights.files import assembled

KEPT = 2  # checkpoints that stay: the one that is served, and the one before
CHUNK = 256 << 20  # bytes of tensors in one request
DEV = "start vLLM with VLLM_SERVER_DEV_MODE=1"

Named = Iterator[tuple[str, Tensor]]


class Sync(Protocol):
    """One way to bring weights to a server."""

    async def push(self, client: Client, weights: Mapping[str, Tensor], version: int) -> None:
        """Make the server serve `weights`, native tensors, and call them `version`.

        Raises:
            EtudeError: it does not take them.
        """
        ...

    async def again(self, client: Client, version: int) -> bool:
        """Make the server serve what was pushed last once more; whether that can be done."""
        ...


def named(model: Decoder, weights: Mapping[str, Tensor], *, on_cpu: bool = True) -> Named:
    """Yield published names and tensors, one at a time, in the layout that `etude.save` writes.

    Args:
        model: whose they are.
        weights: native tensors.
        on_cpu: bring each there; else it stays where it is.
    """
    assert model.published is not None
    device = torch.device("cpu") if on_cpu else model.embed.weight.device
    for name, piece in spelled(model, model.published, weights)[1].items():
        yield name, assembled(weights, piece, device=device)


class CheckpointSync:
    """Write a checkpoint, whole or not at all, and have it loaded; the last two stay.

    vLLM: `/pause`, `/collective_rpc` of the worker's `reload_weights(weights_path=)`, the new name
    by `/update_weight_version`, `/resume`; the pause empties its caches. SGLang:
    `/update_weights_from_disk` (sgl-project/sglang, `UpdateWeightFromDiskReqInput`).

    Args:
        model: whose weights they are.
        folder: where checkpoints are written; the server sees the same path.
        dialect: which server it is.
        tokenizer: written beside them.
    """

    def __init__(
        self, model: Decoder, folder: Path, dialect: Dialect, tokenizer: Tokenizer | None = None
    ):
        self.model, self.folder = model, folder.absolute()
        self.dialect, self.tokenizer = dialect, tokenizer

    async def push(self, client: Client, weights: Mapping[str, Tensor], version: int) -> None:
        """Write `v<version>`, have it loaded, then drop what is older than the one before."""
        save(self.model, self._place(version), state=weights, tokenizer=self.tokenizer)
        await self._load(client, version)
        found = [path for path in self.folder.glob("v*") if path.name[1:].isdigit()]
        for old in sorted(found, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old)

    async def again(self, client: Client, version: int) -> bool:
        """Load the folder that is there."""
        await self._load(client, version)
        return True

    def _place(self, version: int) -> Path:
        return self.folder / f"v{version}"

    async def _load(self, client: Client, version: int) -> None:
        path, label = str(self._place(version)), str(version)
        if self.dialect.name == "sglang":
            body = {"model_path": path, "weight_version": label, "flush_cache": True}
            _done(client, await client.post("/update_weights_from_disk", body))
            return
        async with _paused(client):
            how = {"method": "reload_weights", "kwargs": {"weights_path": path}}
            await client.post("/collective_rpc", how)
            await client.maybe("/update_weight_version", {"new_version": label})


class TransferSync:
    """Hand a vLLM server on the same GPU the memory of each tensor.

    `/init_weight_transfer_engine` once; then for each update `/pause`, `/start_weight_update`,
    `/update_weights` in chunks, `/finish_weight_update` with the version, `/resume`. The server
    must run with `--weight-transfer-config '{"backend": "ipc"}'` and, since handles travel pickled,
    VLLM_ALLOW_INSECURE_SERIALIZATION=1. Source: vllm-project/vllm,
    `entrypoints/serve/dev/rlhf/api_router.py` and `examples/rl/rlhf_http_ipc.py` (0.33).

    Args:
        model: whose weights they are.
        chunk: bytes per request.
    """

    def __init__(self, model: Decoder, *, chunk: int = CHUNK):
        self.model, self.chunk, self._ready = model, chunk, False

    async def push(self, client: Client, weights: Mapping[str, Tensor], version: int) -> None:
        """Go through the four phases; the tensors live until the server has copied them."""
        if not self._ready:
            await client.post("/init_weight_transfer_engine", {"init_info": {}})
            self._ready = True
        device = _uuid(self.model.embed.weight.device)
        async with _paused(client):
            await client.post("/start_weight_update", {"is_checkpoint_format": True})
            for part in _chunks(named(self.model, weights, on_cpu=False), self.chunk):
                handles = [{device: reduce_tensor(tensor)} for _, tensor in part]
                info = {
                    "names": [name for name, _ in part],
                    "dtype_names": [str(t.dtype).removeprefix("torch.") for _, t in part],
                    "shapes": [list(tensor.shape) for _, tensor in part],
                    "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode(),
                }
                await client.post("/update_weights", {"update_info": info})
            await client.post("/finish_weight_update", {"weight_version": str(version)})

    async def again(self, client: Client, version: int) -> bool:
        """The memory holds newer weights by then."""
        return False


class TensorSync:
    """Send an SGLang server the tensors in the request, by value: to any machine, at HTTP's speed.

    Source: sgl-project/sglang, `UpdateWeightsFromTensorReqInput` (0.5.23): a pickled list of (name,
    tensor), in base64, for each tensor-parallel rank.

    Args:
        model: whose weights they are.
        shards: tensor-parallel ranks.
        chunk: bytes of tensors per request.
    """

    def __init__(self, model: Decoder, *, shards: int = 1, chunk: int = CHUNK):
        self.model, self.shards, self.chunk = model, shards, chunk

    async def push(self, client: Client, weights: Mapping[str, Tensor], version: int) -> None:
        """Send chunk by chunk; the last one empties the cache and names the version."""
        part: list[tuple[str, Tensor]] = []
        for following in chain(_chunks(named(self.model, weights), self.chunk), [[]]):
            if part:
                text = base64.b64encode(pickle.dumps(part)).decode()
                body: dict[str, Any] = {"serialized_named_tensors": [text] * self.shards}
                last = {"weight_version": str(version)} if not following else {}
                body |= {"flush_cache": not following} | last
                _done(client, await client.post("/update_weights_from_tensor", body))
            part = following

    async def again(self, client: Client, version: int) -> bool:
        """Nothing is kept."""
        return False


def sync_of(
    spec: Remote, model: Decoder, dialect: Dialect, folder: Path, tokenizer: Tokenizer | None
) -> Sync:
    """Return the stage's way to bring weights to its server.

    Raises:
        EtudeError: the server cannot be served so, or the model has no published layout.
    """
    if model.published is None:
        raise EtudeError("engine.url", "the model belongs to no family", "one of load or create")
    own = {"transfer": "vllm", "tensors": "sglang"}.get(spec.sync, dialect.name)
    if own != dialect.name:
        raise EtudeError("engine.sync", f"{spec.sync}, and the server is {dialect.name}", own)
    if spec.sync == "transfer":
        device = model.embed.weight.device
        if device.type != "cuda":
            found = f"transfer shares the memory of a GPU, and the model is on {device}"
            raise EtudeError("engine.sync", found, do="use sync: checkpoint")
        return TransferSync(model)
    if spec.sync == "tensors":
        return TensorSync(model, shards=spec.shards)
    return CheckpointSync(model, Path(spec.folder) if spec.folder else folder, dialect, tokenizer)


@asynccontextmanager
async def _paused(client: Client) -> AsyncIterator[None]:
    """Hold a vLLM server's requests; those under way end first, and its caches are emptied."""
    try:
        await client.post("/pause?mode=wait")
    except Refused as refused:
        if refused.status != 404:
            raise
        raise EtudeError(client.url, "has no /pause", do=DEV, code=1) from refused
    try:
        yield
    finally:
        await client.post("/resume")


def _done(client: Client, reply: Any) -> None:
    """Read SGLang's own word on an update."""
    if isinstance(reply, Mapping) and reply.get("success") is False:
        found = f"refuses the weights ({reply.get('message', 'no reason given')})"
        raise EtudeError(client.url, found, do="compare its model with the recipe's", code=1)


def _chunks(tensors: Named, most: int) -> Iterator[list[tuple[str, Tensor]]]:
    held: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if held and size + tensor.nbytes > most:
            yield held
            held, size = [], 0
        held.append((name, tensor))
        size += tensor.nbytes
    if held:
        yield held


def _uuid(device: torch.device) -> str:
    if device.type != "cuda":
        return "cpu"
    return str(torch.cuda.get_device_properties(device).uuid)
