"""Released weights in 8 or 4 bits: read to floating point tensor by tensor, and written back.

Two formats: FP8 E4M3 with a float32 scale per block of 128 x 128 (`X.weight` beside
`X.weight_scale_inv`), and the INT4 of compressed-tensors with a scale per group of 32 along a row
(`X.weight_packed`, `X.weight_scale`, `X.weight_shape`). A config says which by its
`quantization_config`.

What is packed when written: FP8, every matrix of a mixer or a feed-forward but the router's; INT4,
the routed experts alone. Embedding, head, norms, biases, routers and what joins an extra prediction
layer to the trunk keep their dtype, as in the releases.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.errors import EtudeError, closest
from etude.ops.quant import NIBBLES, pack_fp8, pack_int4, unpack_fp8, unpack_int4
from etude.weights.files import Files, opened
from etude.weights.layout import Piece, Shape

CONFIG = "config.json: quantization_config"
KEY = "quantization_config"
WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class FP8:
    """E4M3 values with what multiplies each block of them, in float32."""

    block: tuple[int, int] = (128, 128)
    name = "fp8"
    lead = "weight"
    beside = ("weight_scale_inv",)

    def takes(self, name: str, piece: Piece) -> bool:
        """Whether a published tensor is a matrix of a mixer or a feed-forward."""
        inside = ".op." in piece.native and ".router." not in piece.native
        return inside and len(piece.shape) == 2 and name.endswith(WEIGHT)

    def size(self, shape: Shape) -> int:
        """Bytes that a packed matrix takes."""
        rows, columns = self._scales(shape)
        return shape[0] * shape[1] + 4 * rows * columns

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """Shape of the unpacked matrix.

        Raises:
            ValueError: the scales are not one for each block.
        """
        shape, scales = stored["weight"], stored["weight_scale_inv"]
        if len(shape) != 2 or tuple(scales) != self._scales(shape):
            block = " x ".join(map(str, self.block))
            raise ValueError(f"{list(scales)} scales for {list(shape)} in blocks of {block}")
        return shape

    def unpack(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the matrix in float32."""
        return unpack_fp8(stored["weight"], stored["weight_scale_inv"].float(), block=self.block)

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return what is stored of a matrix, by the last part of its name."""
        values, scales = pack_fp8(tensor, block=self.block)
        return {"weight": values, "weight_scale_inv": scales}

    def pack(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return what is stored of a matrix, by name."""
        return _stored(self, name, tensor)

    def config(self, names: Mapping[str, Piece]) -> dict[str, Any]:
        """Return the `quantization_config` of a checkpoint written so."""
        block = list(self.block)
        how = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
        return {**how, "weight_block_size": block}

    def _scales(self, shape: Shape) -> Shape:
        return tuple(ceil(size / step) for size, step in zip(shape, self.block, strict=True))


@dataclass(frozen=True, slots=True)
class INT4:
    """Symmetric 4-bit integers, eight to a word, with a bfloat16 scale for each group of a row."""

    group: int = 32
    name = "int4"
    lead = "weight_packed"
    beside = ("weight_scale", "weight_shape")

    def takes(self, name: str, piece: Piece) -> bool:
        """Whether a published tensor is a matrix of one routed expert."""
        single = piece.index is not None and ".experts." in piece.native
        return single and len(piece.shape) == 2 and name.endswith(WEIGHT)

    def size(self, shape: Shape) -> int:
        """Bytes that a packed matrix takes."""
        rows, columns = shape
        return rows * (4 * ceil(columns / NIBBLES) + 2 * ceil(columns / self.group)) + 16

    def shape(self, stored: Mapping[str, Shape]) -> Shape:
        """Shape of the unpacked matrix.

        Raises:
            ValueError: words, scales and shape contradict each other.
        """
        words, scales = stored["weight_packed"], stored["weight_scale"]
        fits = len(words) == len(scales) == 2 and words[0] == scales[0]
        if not fits or ceil(scales[1] * self.group / NIBBLES) != words[1]:
            found = f"{list(scales)} scales for {list(words)} words"
            raise ValueError(f"{found} in groups of {self.group}")
        return words[0], scales[1] * self.group

    def unpack(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the matrix in float32.

        Raises:
            ValueError: the stored shape is not that of words and scales.
        """
        whole = unpack_int4(stored["weight_packed"], stored["weight_scale"], group=self.group)
        if stored["weight_shape"].tolist() != list(whole.shape):
            found = f"weight_shape {stored['weight_shape'].tolist()}"
            raise ValueError(f"{found} beside values of {list(whole.shape)}")
        return whole

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return what is stored of a matrix, by the last part of its name.

        Raises:
            ValueError: its columns are no multiple of the group.
        """
        words, scales = pack_int4(tensor, group=self.group)
        shape = torch.tensor(tensor.shape)
        return {"weight_packed": words, "weight_scale": scales, "weight_shape": shape}

    def pack(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return what is stored of a matrix, by name."""
        return _stored(self, name, tensor)

    def config(self, names: Mapping[str, Piece]) -> dict[str, Any]:
        """Return the `quantization_config` of a checkpoint written so."""
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
        scheme = {**weights, "group_size": self.group, "dynamic": False, "actorder": None}
        group = {"targets": ["Linear"], "weights": scheme}
        group |= {"input_activations": None, "output_activations": None}
        left = [
            name
            for name, piece in names.items()
            if not self.takes(name, piece) and len(piece.shape) == 2 and name.endswith(WEIGHT)
        ]
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "kv_cache_scheme": None,
            "config_groups": {"group_0": group},
            "ignore": _patterns(left),
        }


Scheme = FP8 | INT4
SCHEMES: dict[str, type[Scheme]] = {"fp8": FP8, "int4": INT4}


def scheme(name: str) -> Scheme:
    """Return the format of a name.

    Raises:
        EtudeError: there is no such format.
    """
    if name not in SCHEMES:
        known = " or ".join(map(repr, SCHEMES))
        raise EtudeError("packed", repr(name), known, closest(name, SCHEMES))
    return SCHEMES[name]()


def read_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """Return the format that a config says its weights are packed in; None where it says none.

    Raises:
        EtudeError: it says one that is not read here.
    """
    told = config.get(KEY)
    if told is None:
        return None
    try:
        match told["quant_method"]:
            case "fp8" if told.get("fmt", "e4m3") == "e4m3":
                rows, columns = map(int, told["weight_block_size"])
                if min(rows, columns) > 0:
                    return FP8((rows, columns))
            case "compressed-tensors" if told["format"] == "pack-quantized":
                (group,) = told["config_groups"].values()
                how = group["weights"]
                same = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
                if not how.get("actorder") and all(how.get(k) == v for k, v in same.items()):
                    return INT4(int(how["group_size"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        pass
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    found = f"weights packed by {method!r} in a way that is not read here"
    known = "fp8 with fmt e4m3 and weight_block_size, or symmetric pack-quantized int4 in one group"
    raise EtudeError(CONFIG, found, known)


class Packed(Files):
    """The tensors of a checkpoint whose weights are packed, under the names they have unpacked.

    Args:
        folder: as for `Files`.
        how: the format.

    Raises:
        EtudeError: scales or shapes are missing or do not fit, or what `Files` refuses.
    """

    def __init__(self, folder: Path, how: Scheme) -> None:
        super().__init__(folder)
        self.how = how
        stored = dict(self.shapes)
        self._whole: dict[str, str] = {}  # stored name of the values -> name of the matrix
        self._beside: set[str] = set()
        for name in stored:
            if not name.endswith(f".{how.lead}") or not self._is_packed(name):
                continue
            stem = name.removesuffix(how.lead)
            parts = {part: f"{stem}{part}" for part in (how.lead, *how.beside)}
            for part, other in parts.items():
                if other not in stored:
                    raise EtudeError(f"{folder}: {name}", f"has no {part}", other)
                del self.shapes[other]
            try:
                shape = how.shape({part: stored[other] for part, other in parts.items()})
            except ValueError as error:
                raise EtudeError(f"{folder}: {name}", str(error), f"what {KEY} says") from error
            self.shapes[f"{stem}weight"] = shape
            self._whole[name] = f"{stem}weight"
            self._beside |= {*parts.values()} - {name}

    def leads(self) -> dict[str, str]:
        """Name of each packed matrix, and of the tensor that stores its values."""
        return {whole: stored for stored, whole in self._whole.items()}

    def _is_packed(self, name: str) -> bool:
        return self.how.lead != "weight" or self.kinds[name] == "F8_E4M3"

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name, packed ones as float32, one shard after another."""
        for path, names in self.shards.items():
            here = set(names)
            with opened(path) as file:
                for name in names:
                    if name in self._beside:
                        continue
                    tensor = file.get_tensor(name)
                    if name not in self._whole:
                        yield name, tensor
                        continue
                    stored = {self.how.lead: tensor}
                    for part in self.how.beside:
                        other = name.removesuffix(self.how.lead) + part
                        # scales may lie in another shard
                        stored[part] = file.get_tensor(other) if other in here else self.read(other)
                    yield self._whole[name], self._unpacked(name, stored)

    def _unpacked(self, name: str, stored: dict[str, Tensor]) -> Tensor:
        try:
            return self.how.unpack(stored)
        except ValueError as error:
            where = f"{self.folder}: {name}"
            raise EtudeError(where, str(error), "the same shape", "copy it again") from error


class Kept:
    """Packing that copies what a packed checkpoint stores of each matrix, bit for bit.

    Args:
        files: the checkpoint that is written again under the same names.
        told: its `quantization_config`.
    """

    def __init__(self, files: Packed, told: Mapping[str, Any]) -> None:
        self.files, self.told, self.name = files, dict(told), files.how.name
        self.leads = files.leads()

    def takes(self, name: str, piece: Piece) -> bool:
        """Whether the checkpoint holds this matrix packed."""
        return name in self.leads

    def size(self, shape: Shape) -> int:
        """Bytes that a packed matrix takes."""
        return self.files.how.size(shape)

    def pack(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return what is stored of a matrix, by name."""
        how = self.files.how
        stem = self.leads[name].removesuffix(how.lead)
        names = (f"{stem}{part}" for part in (how.lead, *how.beside))
        return {stored: self.files.read(stored) for stored in names}

    def config(self, names: Mapping[str, Piece]) -> dict[str, Any]:
        """Return the `quantization_config` as it is."""
        return self.told


def open_files(folder: Path, config: Mapping[str, Any]) -> Files:
    """Open the weights of a checkpoint, unpacked where its config says that they are packed.

    Raises:
        EtudeError: packed weights that the config says nothing of, or what `Packed` refuses.
    """
    how = read_scheme(config)
    files = Files(folder) if how is None else Packed(folder, how)
    narrow = [name for name in files.shapes if files.kinds.get(name, "").startswith("F8")]
    narrow = [name for name in narrow if not isinstance(how, FP8) or files.kinds[name] != "F8_E4M3"]
    if narrow:
        found = f"{narrow[0]} is stored as {files.kinds[narrow[0]]}"
        raise EtudeError(str(folder), found, f"a {KEY} of config.json that says how")
    return files


def _stored(how: Scheme, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if not bool(torch.isfinite(tensor).all()):
        raise EtudeError(name, "holds NaN or infinity", "finite weights to pack")
    try:
        parts = how.split(tensor)
    except ValueError as error:
        raise EtudeError(name, str(error), f"a width that {how.name} can pack") from error
    stem = name.removesuffix("weight")
    return {f"{stem}{part}": value.contiguous() for part, value in parts.items()}


def _patterns(names: Iterable[str]) -> list[str]:
    """Modules that are not packed, as patterns: once for all layers."""
    modules = (re.escape(name.removesuffix(WEIGHT)) for name in names)
    return sorted({"re:" + re.sub(r"(?<=\.)\d+(?=\\\.)", r"\\d+", one) + "$" for one in modules})
