"""What a run tells: every step to `metrics.jsonl`, a terminal or pipe, and trackers."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from etude.errors import EtudeError
from etude.files import atomic
from etude.train.console import CONSOLES, Console
from etude.train.sinks import SINKS, Sink

METRICS = "metrics.jsonl"
Style = Literal["auto", "rich", "plain", "json", "quiet"]


class Log:
    """One `log(stage, step, values)` for all listeners.

    Args:
        folder: the run; `metrics.jsonl` in it is appended to. None = no file.
        sinks: trackers beside it: `tensorboard`, `wandb`, `trackio`.
        console: `rich` progress bars, `plain` lines every few seconds, `json` one object per line
            on stdout, `quiet`; `auto` is `rich` on a terminal and `plain` elsewhere.
        main: false on ranks that keep silent.

    Raises:
        EtudeError: an unknown sink, one that is not installed, or a folder that cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        sinks: Sequence[str] = (),
        console: Style = "auto",
        main: bool = True,
    ):
        self.path = folder / METRICS if folder and main else None
        if console == "auto":
            console = "rich" if sys.stderr.isatty() else "plain"
        self._task = ""
        self.console: Console = CONSOLES[console if main else "quiet"]()
        self.sinks: list[Sink] = [_sink(name, folder) for name in sinks] if main and folder else []

    def begin(
        self, stage: str, *, total: int, unit: str = "tokens", step: int = 0, seen: int = 0
    ) -> None:
        """Start or go on with a stage at `step`; lines of later steps are dropped."""
        if self.path:
            self._rewind(stage, step)
        self.console.begin(stage, total=total, unit=unit, seen=seen)

    def log(
        self, stage: str, step: int, values: Mapping[str, Any], *, seen: int | None = None
    ) -> None:
        """Record what one step saw.

        Args:
            stage: its name.
            step: counted from 1 within the stage.
            values: numbers, lists of numbers (one per layer) or lists of lists (layers by experts).
            seen: progress in the stage's unit, for the bar; None = not a training step.
        """
        line = {"stage": stage, "step": step, "time": round(time.time(), 3), **_plain(values)}
        if self.path:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise _unwritable(self.path, error) from error
        for sink in self.sinks:
            sink.write(stage, step, dict(_flat(line)))
        self.console.log(line, seen=seen)

    def progress(self, task: str, done: int, total: int) -> None:
        """Show work that is no training: a corpus being read, an archive being fetched."""
        if task != self._task:
            self.console.begin(task, total=total, unit="", seen=done)
        self._task = task
        self.console.log({"stage": task}, seen=done)

    def say(self, text: str) -> None:
        """Tell people one line."""
        self.console.say(text)

    def end(self) -> None:
        """Finish the stage's bar."""
        self._task = ""
        self.console.end()

    def close(self) -> None:
        """Flush every tracker."""
        self.console.end()
        for sink in self.sinks:
            sink.close()

    def _rewind(self, stage: str, step: int) -> None:
        assert self.path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for rest in self.path.parent.glob(f".{METRICS}.*.part"):  # left by a kill
                rest.unlink(missing_ok=True)
            found = list(read(self.path)) if self.path.exists() else []
        except OSError as error:
            raise _unwritable(self.path, error) from error
        kept = [line for line in found if line.get("stage") != stage or line.get("step", 0) <= step]
        with atomic(self.path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)


@contextmanager
def reporter(console: Style = "auto") -> Iterator[Callable[[str, int, int], None]]:
    """Yield `progress(task, done, total)` for work outside a run."""
    log = Log(None, console=console)
    try:
        yield log.progress
    finally:
        log.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a `metrics.jsonl`; one that a kill cut short is left out."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict):
                yield line


def _sink(name: str, folder: Path) -> Sink:
    if name not in SINKS:
        raise EtudeError("log", f"no sink {name!r}", ", ".join(SINKS))
    return SINKS[name](folder)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON can hold them: rounded, and null for what is not finite."""
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_number(x) for x in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers by name, those of a list by name and place; lists of lists stay in the file."""
    for name, value in line.items():
        if isinstance(value, bool | int | float):
            yield name, float(value)
        elif isinstance(value, list) and all(isinstance(x, int | float) for x in value):
            yield from ((f"{name}/{i}", float(x)) for i, x in enumerate(value))


def _unwritable(path: Path, error: OSError) -> EtudeError:
    why = error.strerror or os.strerror(error.errno or 0)
    do = "free some space or choose another folder"
    return EtudeError(str(path), f"cannot be written ({why})", do=do, code=1)
