"""Published checkpoints and fresh models: load, save, create."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from etude import arch
from etude.errors import EtudeError, closest
from etude.files import atomic_folder, read_json, write_json
from etude.models import native, table
from etude.models.describe import behind, speaking_of
from etude.nn import build
from etude.nn.decoder import Decoder
from etude.nn.init import initialise
from etude.nn.int8 import Int8Linear
from etude.nn.mamba2 import Mamba2
from etude.text.tokenizer import Tokenizer
from etude.weights.files import KINDS, Files, fill, write, write_tensors
from etude.weights.hub import locate
from etude.weights.layout import Piece, Shape
from etude.weights.packed import KEY, SCHEMES, Kept, Packed, Scheme, open_files, scheme

CONFIG = "config.json"
# Read and written back as they are: what a tokenizer, a chat template or a sampler needs.
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
DEPTH = "num_nextn_predict_layers"


@dataclass(frozen=True, slots=True)
class Published:
    """What a model needs, beside its tensors, to be written in the layout it is published in.

    Args:
        family: name of the system, as in `models.table`.
        config: the published `config.json`.
        folder: where it was read from; None for a model made here.
        tokenizer: what turns text into its ids, if one came with it.
    """

    family: str
    config: dict[str, Any]
    folder: Path | None = None
    tokenizer: Tokenizer | None = None


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
) -> Decoder:
    """Read a published checkpoint, or the last one of a run.

    Args:
        path: folder of a checkpoint, folder of a run, or `organisation/name` on the hub.
        dtype: of the parameters, or its name; a router's selection bias stays float32. Weights that
            are stored in 8 or 4 bits are unpacked to it.
        device: where the tensors are put, one by one.

    Returns:
        The model, with `model.published` set.

    Raises:
        EtudeError: no such checkpoint, dtype or device, another kind of model, a config that does
            not describe one, or a tensor that is missing, left over, mis-shaped or cut short.
    """
    kind, place = _kind(dtype), _place(device)
    folder = behind(locate(str(path)))
    config = _config(folder)
    family = _family(config, folder)
    files = open_files(folder, config)
    config = _without_absent_mtp(family, config, files)
    model = _describe(family, config, folder)
    wide = _wide(model) if kind.itemsize < 4 else set()
    fill(model, family.layout(config), files, dtype=kind, device=place, wide=wide)
    name = family.__name__.rpartition(".")[2]
    model.published = Published(name, config, folder, _tokenizer(folder, config))
    return model


def save(
    model: Decoder,
    folder: str | Path,
    *,
    layout: str | None = None,
    shard_bytes: float = 5e9,
    tokenizer: Tokenizer | None = None,
    state: Mapping[str, Tensor] | None = None,
    packed: str | Scheme | Kept | None = None,
) -> None:
    """Write a model in its published layout; what stood at `folder` stays whole until the end.

    Args:
        model: made by `load` or `create`.
        folder: taken by config.json, safetensors, and the tokenizer files it was loaded with.
        layout: the `model_type` whose spelling of names and config is written; None keeps the one
            it has.
        shard_bytes: most bytes per file.
        tokenizer: written instead of the files it was loaded with.
        state: native tensors to write instead of the model's own, for one whose are sharded.
        packed: "fp8" or "int4" writes the weights so, see `weights.packed`; None writes what the
            model holds, also when it was loaded from packed weights.

    Raises:
        EtudeError: the model is not of a published family, the layout is unknown or cannot say what
            the model is, `folder` holds something else than a checkpoint, the weights cannot be
            packed, or the disk is full.
    """
    how = scheme(packed) if isinstance(packed, str) else packed
    _replaceable(Path(folder))
    published = getattr(model, "published", None)  # any module may be handed in
    if published is None:
        raise EtudeError("save", "this model belongs to no family", "one of load or create")
    if isinstance(model.head, Int8Linear):
        raise EtudeError("save", "int8 weights, which are for inference", "those they came from")
    state = model.state_dict() if state is None else state
    beside: Mapping[str, str] = getattr(model, "beside", {})  # of no published layout, by file
    apart = {file: {name: state[name]} for name, file in beside.items()}
    state = {name: tensor for name, tensor in state.items() if name not in beside}
    config, pieces = spelled(model, published, state, layout)
    config |= {KEY: how.config(pieces)} if how else {}
    # the files it came with say more than the tokenizer alone, as long as they are there
    carried = published.folder is not None and Tokenizer.lies_in(published.folder)
    words = tokenizer or (None if carried else published.tokenizer)
    with atomic_folder(folder) as new:
        if published.folder:
            _carry(published.folder, new)
        if words:
            words.save(new)
        write_json(new / CONFIG, config)
        write(new, pieces, state, shard_bytes=shard_bytes, packing=how)
        for file, tensors in apart.items():
            write_tensors(new / file, tensors)


def spelled(
    model: Decoder, published: Published, state: Mapping[str, Tensor], layout: str | None = None
) -> tuple[dict[str, Any], dict[str, Piece]]:
    """Return the config that `save` writes, and what each published tensor holds."""
    family = table.family(published.family)
    config = _restated(family, published.config, model.arch, state["embed.weight"].dtype)
    if layout is None and published.folder is None and hasattr(family, "opened"):
        layout = family.opened(config)  # made here: in the spelling that other libraries open
    config = _respelled(family, config, layout)
    return config, family.layout(config).spell(_shapes(state))


def _replaceable(folder: Path) -> None:
    """Refuse to put a checkpoint in the place of a file, or of a folder of other things."""
    if folder.is_dir():
        names = [path.name for path in folder.iterdir()]
        if not names or (CONFIG in names and any(name.endswith(".safetensors") for name in names)):
            return
        held = f"holds {min(names)} and is no checkpoint, which would be lost"
        raise EtudeError(str(folder), held, "a new folder, or a checkpoint to replace")
    if folder.exists():
        raise EtudeError(str(folder), "is a file", "a folder to write to")


def create(family: str, size: str = "tiny", *, seed: int = 0, **overrides: Any) -> Decoder:
    """Make a model of a family with fresh weights.

    Args:
        family: name of the system.
        size: one of its sizes.
        seed: of the initial weights.
        **overrides: keys of its config.json that differ from those of the size.

    Raises:
        EtudeError: no such family, size or key; a value that does not describe a model.
    """
    module = table.family(family)
    config = table.size(family, size)
    for key in overrides:
        if key not in config:
            near = closest(key, config) or f"known are {', '.join(sorted(config))}"
            raise EtudeError(f"{family}.{key}", "no such key in its config.json", do=near)
    config |= overrides
    model = build.decoder(_plan(module, config, f"{family} {size}"))
    initialise(model, seed)
    model.published = Published(family, config)
    return model


def compose(plan: arch.Decoder, *, chat: str | None, seed: int = 0, **more: Any) -> Decoder:
    """Make a model of any description with fresh weights, as `etude.arch.swap` gives them.

    Args:
        plan: the description; it is saved with the weights, in no published layout.
        chat: chat format it is to be talked to in, in `etude.text.chat.FORMATS`, or None.
        seed: of the initial weights.
        **more: further keys of its config.json, as `eos_token_id`.
    """
    model = build.decoder(plan)
    initialise(model, seed)
    model.published = Published(table.NATIVE, native.config(plan, chat=chat, **more))
    return model


def convert(
    source: str | Path,
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    shard_bytes: float = 5e9,
) -> str:
    """Read a checkpoint and write it again, whole and checked, in another dtype or shard size.

    Args:
        source: as for `load`.
        folder: as for `save`.
        dtype: a torch dtype or its name, or "fp8" or "int4" to pack the weights so while the rest
            keeps its dtype; None keeps the one that most numbers are stored in, and packed weights
            as they are, bit for bit.
        shard_bytes: as for `save`.

    Returns:
        One line that says what was written.

    Raises:
        EtudeError: no such dtype, or what `load` and `save` refuse.
    """
    old = behind(locate(str(source)))
    config = _config(old)
    files = open_files(old, config)
    how = scheme(dtype) if isinstance(dtype, str) and dtype in SCHEMES else None
    if dtype is None and isinstance(files, Packed):
        how = Kept(files, config[KEY])
    kind = Files(old).dtype() if dtype is None or how else _kind(dtype, *SCHEMES)
    # float32 holds every product of a packed value and its scale
    model = load(source, dtype=torch.float32 if how else kind)
    state = _around(model, how, kind) if how else model.state_dict()
    save(model, folder, shard_bytes=shard_bytes, state=state, packed=how)
    numbers = sum(tensor.numel() for tensor in state.values())
    return f"{folder}: {numbers:,} numbers, {how.name if how else str(kind).removeprefix('torch.')}"


def _around(model: Decoder, how: Scheme | Kept, kind: torch.dtype) -> dict[str, Tensor]:
    """Give the parameters that are not packed another dtype."""
    published, state = model.published, model.state_dict()
    pieces = {}
    if published is not None:
        pieces = table.family(published.family).layout(published.config).spell(_shapes(state))
    packed = {piece.native for name, piece in pieces.items() if how.takes(name, piece)}
    loose = {name for name, _ in model.named_parameters()} - packed - _wide(model)
    return {name: t.to(kind) if name in loose else t for name, t in state.items()}


def _carry(source: Path, target: Path) -> None:
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise EtudeError(str(folder), f"holds no {CONFIG}", "a checkpoint or a run")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise EtudeError(str(folder / CONFIG), "has no model_type", "the config of a model")
    return config


def _family(config: dict[str, Any], folder: Path) -> ModuleType:
    try:
        return table.by_model_type(config)
    except EtudeError as error:
        # an `auto_map` names Python files of the checkpoint; a known family needs none of them
        do = "its own code (auto_map) is never run" if "auto_map" in config else error.do
        where = f"{folder / CONFIG}: model_type"
        raise EtudeError(where, error.found, error.expected, do) from error


def _tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer | None:
    if not Tokenizer.lies_in(folder):
        return None
    words = Tokenizer.load(folder)
    stop = config.get("eos_token_id")
    if stop is not None:
        words.stop_ids = stop if isinstance(stop, list) else [stop]
        if not all(isinstance(id, int) for id in words.stop_ids):
            where = f"{folder / CONFIG}: eos_token_id"
            raise EtudeError(where, repr(stop), "a token id or a list of them")
    return words


def _plan(family: ModuleType, config: dict[str, Any], where: str) -> arch.Decoder:
    with speaking_of(where):
        return family.arch(config)


def _describe(family: ModuleType, config: dict[str, Any], folder: Path) -> Decoder:
    plan = _plan(family, config, str(folder / CONFIG))
    try:
        with torch.device("meta"):
            return build.decoder(plan)
    except RuntimeError as error:  # a size beyond what any tensor can have
        found = f"describes no model ({str(error).splitlines()[0]})"
        raise EtudeError(str(folder / CONFIG), found) from error


def _without_absent_mtp(family: ModuleType, config: dict[str, Any], files: Files) -> dict[str, Any]:
    """Drop the extra prediction layer from the config when the file holds no tensor of it.

    transformers saves the trunk alone and still writes the layer's count. A file that holds some of
    the layer's tensors is a damaged one, and is left to fail as such.
    """
    if not config.get(DEPTH):
        return config
    shapes = _shapes(_describe(family, config, files.folder).state_dict())
    pieces = family.layout(config).spell(shapes)
    extra = {n for n, p in pieces.items() if p.native.startswith("mtp.")} | set(
        family.layout(config).copies
    )
    if extra & files.shapes.keys():
        return config
    warnings.warn(
        f"{files.folder}: {CONFIG} says {DEPTH} {config[DEPTH]}, but the file holds only the "
        "trunk; loaded without the extra prediction layer",
        stacklevel=3,
    )
    return {**config, DEPTH: 0}


def _restated(
    family: ModuleType, config: dict[str, Any], plan: arch.Decoder, dtype: torch.dtype
) -> dict[str, Any]:
    """Bring a config up to what the model is now: its dtype, and what training changed."""
    name = str(dtype).removeprefix("torch.")
    kept = {k: v for k, v in config.items() if k not in ("auto_map", "torch_dtype", "dtype", KEY)}
    return family.restate(kept, plan) | {"dtype": name, "torch_dtype": name}


def _respelled(family: ModuleType, config: dict[str, Any], layout: str | None) -> dict[str, Any]:
    own, known = family.__name__.rpartition(".")[2], family.MODEL_TYPES
    if layout in (None, config["model_type"]) or (layout == own and own not in known):
        return config
    if layout not in known:
        words = " or ".join(map(repr, ("None", *known)))
        found = f"no spelling {layout!r}" + (f": {native.ALONE}" if family is native else "")
        raise EtudeError("layout", found, words.replace("'None'", "None"))
    return family.respell(config, layout)


def _kind(dtype: torch.dtype | str, *packed: str) -> torch.dtype:
    known = {str(kind).removeprefix("torch."): kind for kind in KINDS.values()}
    known |= {"float64": torch.float64}
    if isinstance(dtype, str):
        name = dtype.removeprefix("torch.")
        if name not in known:
            names = (*known, *packed)
            expected = f"one of {', '.join(names)}"
            raise EtudeError("dtype", repr(dtype), expected, closest(name, names))
        return known[name]
    return dtype


def _place(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        found = f"{str(device)!r} cannot be used ({str(error).splitlines()[0]})"
        raise EtudeError("device", found, "'cpu', or a device that torch sees here") from error
    return place


def _wide(model: Decoder) -> set[str]:
    """Names of the parameters that stay float32 in a model of a narrower dtype."""
    head = {"head.weight"} if model.arch.wide_head else set()
    scans = (name for name, module in model.named_modules() if isinstance(module, Mamba2))
    head |= {f"{name}.{part}" for name in scans for part in ("a_log", "d", "dt_bias")}
    return head | {f"{name}.weight" for name, router in model.routers() if router.arch.wide}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
