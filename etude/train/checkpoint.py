"""The exact state of a stage while it trains, and the published checkpoint at its end.

`<stage>/state/latest.json` holds all numbers and names the folder with all tensors. It is replaced
in one move once those tensors are on disk, so a kill at any moment leaves either the old state or
the new one, whole. Tensors are written by `torch.distributed.checkpoint`: every rank its own
shards, and any number of ranks reads them.
"""

import base64
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from etude.errors import EtudeError
from etude.files import read_json, write_json
from etude.models import checkpoint as published
from etude.nn.decoder import Decoder
from etude.optim.build import Optimizers
from etude.parallel.mesh import Ranks
from etude.parallel.shard import whole
from etude.train.loop import Progress, Source
from etude.typing import Tensor

LATEST = "latest.json"
KINDS = {
    "key": str,
    "tensors": str,
    "threads": int,
    "progress": dict,
    "source": dict,
    "random": dict,
}


class State:
    """What a resumed stage needs to go on bit for bit.

    Weights, optimizer, source, progress, random numbers and the number of threads.

    Args:
        folder: taken by it alone.
        model, optimizers, source: what is saved, and filled again in place.
        ranks: they save and restore together.
        key: of everything that must not change; a state with another one is dropped, with a word.
    """

    def __init__(
        self,
        folder: Path,
        model: Decoder,
        optimizers: Optimizers,
        source: Source,
        *,
        ranks: Ranks,
        key: str,
    ):
        self.folder, self.source, self.ranks, self.key = folder, source, ranks, key
        self.model, self.optimizers = model, optimizers
        self.saved = -1  # step of the last save

    def save(self, progress: Progress) -> None:
        """Write the state after `progress.step` steps.

        Raises:
            EtudeError: the disk is full or not writable; the state before is intact.
        """
        if self.saved == progress.step:
            return
        tensors = self.folder / f"step-{progress.step}"
        self._sweep(keep=self._latest().get("tensors"))
        try:
            self._dcp(dcp.save, tensors)
        except (OSError, RuntimeError, CheckpointException) as error:
            self._sweep(keep=self._latest().get("tensors"), wait=False)
            raise _unwritable(tensors, error) from error
        if self.ranks.main:
            threads = torch.get_num_threads()
            known = {"key": self.key, "tensors": tensors.name, "threads": threads}
            now = {"progress": asdict(progress), "source": self.source.state(), "random": _random()}
            write_json(self.folder / LATEST, known | now)
        self._sweep(keep=tensors.name)
        self.saved = progress.step

    def restore(
        self, progress: Progress, *, say: Callable[[str], None], threads: int = 0
    ) -> Progress:
        """Go back to the last saved state; without one, `progress` is returned and nothing changes.

        Args:
            progress: of a stage that has not begun.
            say: called with what the user should know.
            threads: CPU threads that the user asked for, which then stay; 0 = none asked for, and
                those of the state are set, without which the end would not be bit for bit the same.

        Raises:
            EtudeError: the state is damaged.
        """
        latest = self._latest()
        if latest and latest["key"] != self.key:
            say(f"{self.folder}: saved under other settings; the stage starts anew")
            self.remove()
            latest = {}
        if not latest:
            return progress
        tensors = self.folder / latest["tensors"]
        try:
            self._dcp(dcp.load, tensors)
        except (OSError, RuntimeError, ValueError, CheckpointException) as error:
            raise self._damaged(tensors, "is damaged or of another model") from error
        try:
            progress = Progress(**latest["progress"])
            self.source.restore(latest["source"])
            _set_random(latest["random"])
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise self._damaged(self.folder / LATEST, "is no saved state") from error
        _settle_threads(threads, latest["threads"], say)
        self.saved = progress.step
        return progress

    def remove(self) -> None:
        """Delete the state."""
        self.ranks.barrier()
        if self.ranks.main and self.folder.exists():
            (self.folder / LATEST).unlink(
                missing_ok=True
            )  # first: what is left over then means nothing
            shutil.rmtree(self.folder, ignore_errors=True)
        self.ranks.barrier()

    def _latest(self) -> dict[str, Any]:
        path = self.folder / LATEST
        if not path.exists():
            return {}
        latest = read_json(path)
        if not isinstance(latest, dict) or any(
            not isinstance(latest.get(name), kind) for name, kind in KINDS.items()
        ):
            raise self._damaged(path, "is no saved state")
        return latest

    def _damaged(self, path: Path, found: str) -> EtudeError:
        do = f"remove {self.folder} to start the stage anew"
        return EtudeError(str(path), found, do=do, code=1)

    def _tensors(self) -> dict[str, Tensor]:
        own = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        own |= {f"optim.{name}": tensor for name, tensor in self.optimizers.state().items()}
        held = getattr(self.source, "tensors", dict)()  # of a source that trains something itself
        return own | {f"source.{name}": tensor for name, tensor in held.items()}

    def _dcp(self, call: Callable[..., Any], folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            call(self._tensors(), checkpoint_id=str(folder), no_dist=self.ranks.mesh is None)

    def _sweep(self, *, keep: str | None, wait: bool = True) -> None:
        """Delete all tensors but `keep`: older ones, and what a kill left half written."""
        if wait:
            self.ranks.barrier()
        if self.ranks.main and self.folder.exists():
            for folder in self.folder.iterdir():
                if folder.is_dir() and folder.name != keep:
                    shutil.rmtree(folder, ignore_errors=True)
                elif folder.suffix == ".part":
                    folder.unlink(missing_ok=True)
        if wait:
            self.ranks.barrier()


def publish(model: Decoder, folder: Path, ranks: Ranks) -> None:
    """Write the published layout from rank 0; what stood at `folder` is intact until the end."""
    tensors = whole(model, ranks)
    if ranks.main:
        published.save(model, folder, state=tensors)
    ranks.barrier()


def _settle_threads(wanted: int, saved: int, say: Callable[[str], None]) -> None:
    """Keep the threads that were asked for, with a word; else set those of the saved state.

    As with the number of ranks, whoever asks for another number gets it: the stage ends within
    rounding of the same weights.
    """
    if wanted and wanted != saved:
        say(
            f"threads: {wanted} as asked for, but this stage was saved with {saved}: sums round"
            " differently from here on, so its end is not bit for bit that of one run"
        )
    torch.set_num_threads(wanted or saved)


def _random() -> dict[str, Any]:
    state = torch.get_rng_state().numpy().tobytes()
    return {"torch": base64.b64encode(state).decode(), "python": random.getstate()}


def _set_random(kept: dict[str, Any]) -> None:
    state = bytearray(base64.b64decode(kept["torch"]))
    torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8).clone())
    version, numbers, gauss = kept["python"]
    random.setstate((version, tuple(numbers), gauss))


def _unwritable(path: Path, error: BaseException) -> EtudeError:
    """One line for a failed save; the cause lies under what torch wraps around it."""
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else [error]
    first = causes[0][0] if isinstance(causes[0], tuple) else causes[0]
    why = getattr(first, "strerror", None) or str(first).splitlines()[0]
    if "inline_container" in why:  # torch's archive tells only that a write came out short
        why = "the disk took only a part"
    do = "free some space; the state before is intact, and the same command goes on from it"
    return EtudeError(str(path), f"cannot be written ({why})", do=do, code=1)
