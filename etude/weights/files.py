"""Checkpoints as safetensors files: read and written shard by shard, never as pickles.

Peak memory while reading is the weights plus one shard: a model is described on the meta device
and each of its tensors is made when the first of its pieces is read. Writing keeps the same bound.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

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


class Files:
    """The tensors of a checkpoint folder: shapes at once, data on demand.

    Args:
        folder: holds `model.safetensors`, or an index and the shards it names.

    Raises:
        EtudeError: no weights, pickled weights, or a shard that is missing, truncated or not what
            the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[Path, dict[str, Shape]] = {path: header(path) for path in _paths(folder)}
        self.shapes: dict[str, Shape] = {}
        self._home: dict[str, Path] = {}
        for path, shapes in self.shards.items():
            self.shapes |= shapes
            self._home |= dict.fromkeys(shapes, path)
        if (folder / INDEX).exists():
            self._check_index()

    def dtype(self) -> torch.dtype:
        """Return the dtype that most of the numbers are stored in."""
        sizes: Counter[torch.dtype] = Counter()
        for path, shapes in self.shards.items():
            with _opened(path) as file:
                for name, shape in shapes.items():
                    sizes[KINDS.get(file.get_slice(name).get_dtype(), torch.float32)] += prod(shape)
        return sizes.most_common(1)[0][0]

    def blocks(self, name: str) -> Iterator[Tensor]:
        """Read one tensor a few rows at a time."""
        rows, *rest = self.shapes[name]
        step = max(1, BLOCK // max(1, prod(rest)))
        for start in range(0, rows, step):
            with _opened(self._home[name]) as file:  # anew: an open file keeps what was read
                block = file.get_slice(name)[start : start + step]
            yield block

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name, one shard after another."""
        for path, shapes in self.shards.items():
            yield from _tensors(path, list(shapes))

    def _check_index(self) -> None:
        for name, file in _weight_map(self.folder).items():
            if self._home.get(name) != self.folder / file:
                raise EtudeError(
                    str(self.folder / file), f"has no tensor {name}", f"what {INDEX} says of it"
                )


def header(path: Path) -> dict[str, Shape]:
    """Read the names and shapes of a safetensors file, and check that its data are all there.

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
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in told.items()}
        ends = [int(entry["data_offsets"][1]) for entry in told.values()]
    except (LookupError, TypeError, ValueError) as error:
        raise EtudeError(str(path), "has a corrupt header", do="copy it again", code=1) from error
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        found = f"is truncated or corrupt ({size:,} bytes)"
        raise EtudeError(str(path), found, f"{whole:,}", "copy it again", code=1)
    return shapes


def fill(
    model: nn.Module, layout: Layout, files: Files, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Give a model that was built on the meta device the tensors of a checkpoint.

    Parameters take `dtype`; a buffer keeps the one it was declared with, so a router's selection
    bias stays float32.

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
            if piece.native not in made:
                meta = natives[piece.native]
                kind = dtype if piece.native in trained else meta.dtype
                made[piece.native] = torch.empty(meta.shape, dtype=kind, device=device)
            whole = made[piece.native]
            (whole if piece.index is None else whole[piece.index]).copy_(tensor)
    _check_copies(layout, plan, files)
    for name, tensor in made.items():
        _put(model, name, nn.Parameter(tensor) if name in trained else tensor)


def write(
    folder: Path, pieces: Mapping[str, Piece], state: Mapping[str, Tensor], *, shard_bytes: float
) -> None:
    """Write published tensors to `folder` as one file, or as shards with an index.

    Args:
        folder: an existing folder.
        pieces: what each published tensor holds, as `Layout.spell` gives it.
        state: the native tensors.
        shard_bytes: a shard is closed before it would grow beyond this; a tensor is never cut.

    Raises:
        EtudeError: the disk is full or not writable.
    """
    shards = _shards(pieces, state, shard_bytes)
    total = sum(size for _, size in shards)
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE]
    for file, (held, _) in zip(names, shards, strict=True):
        tensors: dict[str, Tensor] = {}
        for name in held:
            tensor = _piece(state, pieces[name])
            # one buffer under two names is refused by safetensors: a tensor stored twice is copied
            seen = any(tensor.data_ptr() == other.data_ptr() for other in tensors.values())
            tensors[name] = tensor.clone() if seen else tensor
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise EtudeError(
                str(folder / file), f"cannot be written ({error})", do="free some space", code=1
            ) from error
        (folder / file).chmod(0o644)
    if len(shards) > 1:
        weights = {n: f for f, (held, _) in zip(names, shards, strict=True) for n in held}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weights})


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


def _tensors(path: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    with _opened(path) as file:
        for name in names:
            yield name, file.get_tensor(name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        found = f"cannot be read ({error})"
        raise EtudeError(str(path), found, do="copy it again", code=1) from error


def _check_copies(layout: Layout, plan: Mapping[str, Piece], files: Files) -> None:
    published = {piece.native: name for name, piece in plan.items()}
    for copy, native in layout.copies.items():
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
    pieces: Mapping[str, Piece], state: Mapping[str, Tensor], shard_bytes: float
) -> list[tuple[list[str], int]]:
    shards: list[tuple[list[str], int]] = [([], 0)]
    for name, piece in pieces.items():
        tensor = state[piece.native]
        size = tensor.element_size() * tensor.numel()
        size = size if piece.index is None else size // tensor.shape[0]
        held, used = shards[-1]
        if held and used + size > shard_bytes:
            shards.append(([name], size))
        else:
            held.append(name)
            shards[-1] = (held, used + size)
    return shards


def _piece(state: Mapping[str, Tensor], piece: Piece) -> Tensor:
    tensor = state[piece.native].detach()
    tensor = tensor if piece.index is None else tensor[piece.index]  # [E, ...] -> one expert
    return tensor.to("cpu").contiguous()
