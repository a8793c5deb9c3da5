"""Trackers that a run can report to; each is an extra, imported only when it is asked for."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from etude.errors import EtudeError
from etude.files import read_json, write_json


class Sink(Protocol):
    """Something that takes numbers by name."""

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step."""
        ...

    def close(self) -> None:
        """Flush what is pending."""
        ...


def _need(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        do = f"pip install 'etude[{extra}]'"
        raise EtudeError(
            f"log.{extra.removeprefix('log-')}", f"{module} is not installed", do=do
        ) from error


class TensorBoard:
    """Event files in `<run>/tensorboard`, one curve per stage and value."""

    def __init__(self, folder: Path):
        _need("tensorboard", "log-tensorboard")
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(folder / "tensorboard"))

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step."""
        for name, value in values.items():
            if name not in ("step", "time"):
                self.writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Flush what is pending."""
        self.writer.close()


class Hosted:
    """W&B, or trackio, which takes the same calls; a resumed run keeps its id in its folder."""

    def __init__(self, folder: Path, *, module: str):
        self.module = _need(module, f"log-{module}")
        kept = folder / f".{module}.json"
        self.run = self._open(folder, read_json(kept)["id"] if kept.exists() else None)
        if not kept.exists():
            write_json(kept, {"id": getattr(self.run, "id", None) or folder.name})

    def _open(self, folder: Path, identity: str | None) -> Any:
        if self.module.__name__ == "trackio":  # runs are known by name there
            return self.module.init(project="etude", name=identity or folder.name, resume="allow")
        known = {"name": folder.name, "id": identity, "dir": str(folder)}
        return self.module.init(project="etude", resume="allow", **known)

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step."""
        own = {f"{stage}/{name}": value for name, value in values.items() if name != "time"}
        self.run.log(own)

    def close(self) -> None:
        """Flush what is pending."""
        self.run.finish()


SINKS: dict[str, Callable[[Path], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda folder: Hosted(folder, module="wandb"),
    "trackio": lambda folder: Hosted(folder, module="trackio"),
}
