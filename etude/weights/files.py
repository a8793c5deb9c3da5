"""Checkpoints as safetensors files: read and written shard by shard, never as pickles.

Peak memory while reading is the weights plus one shard: a model is described on the meta device
and each of its tensors is made when the first of its pieces is read. Writing keeps the same bound.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from etude.errors import EtudeError
from etude.files import read_json, write_json
from etude.weights.layout import Layout, Piece, Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
BLOCK = 2**18  # numbers of a tensor stored twice that are compared at once


class Packing(Protocol):
    """A way to write weights in fewer bits, as `weights.packed` has them."""

    def takes(self, name: str, piece: Piece) -> bool:
        """Whether a published tensor is written packed."""
        ...

    def size(self, shape: Shape) -> int:
        """Bytes that a packed matrix takes."""
        ...

    def pack(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return what is stored of a matrix, by name."""
        ...


class Files:
    """The tensors of a checkpoint folder: shapes at once, data on demand.

    Args:
        folder: holds `model.safetensors`, or an index and the shards it names.

    Raises:
        EtudeError: no weights, pickled weights, or a shard that is missing, truncated or not what
            the index says.

    Attributes:
        shards: names of the tensors in each file.
        shapes: shape of every tensor.
        kinds: how each is stored, in the words of safetensors: F32, BF16, F8_E4M3.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[Path, list[str]] = {}
        self.shapes: dict[str, Shape] = {}
        self.kinds: dict[str, str] = {}
        self._home: dict[str, Path] = {}
        for path in _paths(folder):
            entries = header(path)
            self.shards[path] = list(entries)
            self.shapes |= {name: shape for name, (_, shape) in entries.items()}
            self.kinds |= {name: kind for name, (kind, _) in entries.items()}
            self._home |= dict.fromkeys(entries, path)
        if (folder / INDEX).exists():
            self._check_index()

    def dtype(self) -> torch.dtype:
        """Return the dtype that most of the numbers are stored in, packed ones apart."""
        sizes: Counter[torch.dtype] = Counter()
        for name, kind in self.kinds.items():
            if kind in KINDS:
                sizes[KINDS[kind]] += prod(self.shapes[name])
        return sizes.most_common(1)[0][0] if sizes else torch.float32

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        with opened(self._home[name]) as file:
            return file.get_tensor(name)

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Read one tensor a few rows at a time."""
        rows, *rest = self.shapes[name]
        step = max(1, BLOCK // max(1, prod(rest)))
        for start in range(0, rows, step):
            with opened(self._home[name]) as file:  # anew: an open file keeps what was read
                block = file.get_slice(name)[start : start + step]
            yield block

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name, one shard after another."""
        for path, names in self.shards.items():
            with opened(path) as file:
                for name in names:
                    yield name, file.get_tensor(name)

    def _check_index(self) -> None:
        for name, file in _weight_map(self.folder).items():
            if self._home.get(name) != self.folder / file:
                raise EtudeError(
                    str(self.folder / file), f"has no tensor {name}", f"what {INDEX} says of it"
                )


def header(path: Path) -> dict[str, tuple[str, Shape]]:
    """Read names, kinds and shapes of a safetensors file, and check that its data are all there.

    Raises:
        EtudeError: the file is missing, truncated or of another format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            told = json.loads(file.read(length)) if length <= size - 8 else None
    except FileNotFoundError as error:
        raise EtudeError(str(path), "no such file", "a shard", "copy it again", code=1) from error
    except (ValueError, UnicodeDecodeError) as error:
        found = "is not a safetensors file"
        raise EtudeError(str(path), found, do="copy it again", code=1) from error
    except OSError as error:
        raise EtudeError(str(path), f"cannot be read ({error.strerror})", code=1) from error
    if not isinstance(told, dict):
        found = f"is truncated or corrupt ({size:,} bytes)"
        raise EtudeError(str(path), found, do="copy it again", code=1)
    told.pop("__metadata__", None)
    try:
        entries = {
            name: (str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in told.items()
        }
        ends = [int(entry["data_offsets"][1]) for entry in told.values()]
    except (LookupError, TypeError, ValueError) as error:
        raise EtudeError(str(path), "has a corrupt header", do="copy it again", code=1) from error
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        found = f"is truncated or corrupt ({size:,} bytes)"
        raise EtudeError(str(path), found, f"{whole:,}", "copy it again", code=1)
    return entries


def fill(
    model: nn.Module,
    layout: Layout,
    files: Files,
    *,
    dtype: torch.dtype,
    device: torch.device,
    wide: Set[str] = frozenset(),
) -> None:
    """Give a model that was built on the meta device the tensors of a checkpoint.

    Parameters take `dtype`; those named in `wide` and the buffers keep the one they were declared
    with, so a router's selection bias stays float32.

    Raises:
        EtudeError: a tensor is missing, left over or mis-shaped, or a tensor stored twice differs.
    """
    natives = model.state_dict()
    plan = layout.match(
        {name: tuple(t.shape) for name, t in natives.items()}, files.shapes, where=str(files.folder)
    )
    trained = {name for name, _ in model.named_parameters()}
    made: dict[str, Tensor] = {}
    for name, tensor in files:
        if piece := plan.get(name):
            _finite(tensor, f"{files.folder}: {name}")
            tensor = tensor.t() if piece.turned else tensor
            for native in (piece.native, *piece.beside):
                if native not in made:
                    meta = natives[native]
                    kind = dtype if native in trained - wide else meta.dtype
                    made[native] = torch.empty(meta.shape, dtype=kind, device=device)
                whole = made[native]
                if piece.index is not None:
                    whole[piece.index].copy_(tensor)
                elif piece.beside:
                    mine, tensor = tensor.split((len(whole), len(tensor) - len(whole)))
                    whole.copy_(mine)
                else:
                    whole.copy_(tensor)
    _check_copies(layout, plan, files)
    for name, tensor in made.items():
        _put(model, name, nn.Parameter(tensor) if name in trained else tensor)


def write(
    folder: Path,
    pieces: Mapping[str, Piece],
    state: Mapping[str, Tensor],
    *,
    shard_bytes: float,
    packing: Packing | None = None,
) -> None:
    """Write published tensors to `folder` as one file, or as shards with an index.

    Args:
        folder: an existing folder.
        pieces: what each published tensor holds, as `Layout.spell` gives it.
        state: the native tensors.
        shard_bytes: a shard is closed before it would grow beyond this; a tensor is never cut.
        packing: how matrices that it takes are written in fewer bits.

    Raises:
        EtudeError: the disk is full or not writable, or a tensor cannot be packed.
    """
    packed = {name for name, piece in pieces.items() if packing and packing.takes(name, piece)}
    shards = _shards(pieces, state, shard_bytes, packing, packed)
    total = sum(size for _, size in shards)
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE]
    weights: dict[str, str] = {}
    for file, (held, _) in zip(names, shards, strict=True):
        tensors: dict[str, Tensor] = {}
        for name in held:
            tensor = assembled(state, pieces[name])
            if packing and name in packed:
                tensors |= packing.pack(name, tensor)
                continue
            # one buffer under two names is refused by safetensors: a tensor stored twice is copied
            seen = any(tensor.data_ptr() == other.data_ptr() for other in tensors.values())
            tensors[name] = tensor.clone() if seen else tensor
        write_tensors(folder / file, tensors)
        weights |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weights})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file, by name.

    Raises:
        EtudeError: the disk is full or not writable.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(0o644)
    except (SafetensorError, OSError) as error:
        where, found = str(path), f"cannot be written ({error})"
        raise EtudeError(where, found, do="free some space", code=1) from error


def _paths(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return [folder / file for file in dict.fromkeys(_weight_map(folder).values())]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise EtudeError(
            str(folder / pickles[0]),
            "is a pickle, which can run code when it is read",
            SINGLE,
            "convert the checkpoint to safetensors",
        )
    raise EtudeError(str(folder), "holds no weights", f"{SINGLE} or {INDEX}")


def _weight_map(folder: Path) -> dict[str, str]:
    found = read_json(folder / INDEX)
    if not isinstance(found, dict) or not isinstance(found.get("weight_map"), dict):
        raise EtudeError(str(folder / INDEX), "has no weight_map", "an index of shards")
    for name, file in found["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file:
            where = f"{folder / INDEX}: {name}"
            raise EtudeError(where, repr(file), "the name of a shard beside it")
    return found["weight_map"]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file to read from.

    Raises:
        EtudeError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        found = f"cannot be read ({error})"
        raise EtudeError(str(path), found, do="copy it again", code=1) from error


def _finite(tensor: Tensor, where: str) -> None:
    if not tensor.numel():
        return
    low, high = tensor.aminmax()  # both are NaN where any number is; no mask as large as the tensor
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EtudeError(where, "holds NaN or infinity", "numbers", "copy it again")


def _check_copies(layout: Layout, plan: Mapping[str, Piece], files: Files) -> None:
    published = {piece.native: name for name, piece in plan.items()}
    for copy, native in (layout.copies | layout.repeats).items():
        stored = copy in files.shapes and native in published
        if stored and not _alike(files, copy, published[native]):
            raise EtudeError(
                f"{files.folder}: {copy}",
                "differs from the tensor it repeats",
                f"the values of {published[native]}",
            )


def _alike(files: Files, copy: str, original: str) -> bool:
    """Whether a tensor repeats another, read block by block: a whole one may be a shard of its own.

    Not bit by bit: files exist whose copies were taken after a rounding of the original.
    """
    if files.shapes[copy] != files.shapes[original]:
        return False
    pairs = zip(files.blocks(copy), files.blocks(original), strict=True)
    return all(torch.allclose(a.float(), b.float(), rtol=1e-5, atol=1e-6) for a, b in pairs)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)


def _shards(
    pieces: Mapping[str, Piece],
    state: Mapping[str, Tensor],
    shard_bytes: float,
    packing: Packing | None,
    packed: Set[str],
) -> list[tuple[list[str], int]]:
    shards: list[tuple[list[str], int]] = [([], 0)]
    for name, piece in pieces.items():
        size = state[piece.native].element_size() * prod(piece.shape)
        size = packing.size(piece.shape) if packing and name in packed else size
        held, used = shards[-1]
        if held and used + size > shard_bytes:
            shards.append(([name], size))
        else:
            held.append(name)
            shards[-1] = (held, used + size)
    return shards


def assembled(
    state: Mapping[str, Tensor], piece: Piece, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return a published tensor, made of native ones."""
    tensor = state[piece.native].detach()
    tensor = tensor if piece.index is None else tensor[piece.index]  # [E, ...] -> one expert
    if piece.beside:
        tensor = torch.cat([tensor, *(state[name].detach() for name in piece.beside)])
    tensor = tensor.t() if piece.turned else tensor
    return tensor.to(device).contiguous()
