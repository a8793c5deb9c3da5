"""How a run looks while it runs: bars on a terminal, plain lines in a pipe, JSON for programs."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS = 5.0  # between plain lines
SHOWN = (
    ("loss", "loss {:.3f}"),
    ("reward", "reward {:.2f}"),
    ("entropy", "entropy {:.2f}"),
    ("grad_norm", "grad {:.2f}"),
    ("tok_s", "{:,.0f} tok/s"),
)


class Console(Protocol):
    """What people see of a run."""

    def begin(self, stage: str, *, total: int, unit: str, seen: int) -> None:
        """Start a stage at `seen` of `total`."""
        ...

    def log(self, line: Mapping[str, Any], *, seen: int | None) -> None:
        """Show one step."""
        ...

    def say(self, text: str) -> None:
        """Show a line of text."""
        ...

    def end(self) -> None:
        """Leave the stage."""
        ...


def _summary(line: Mapping[str, Any]) -> str:
    pairs = ((shape, line.get(name)) for name, shape in SHOWN)
    parts = [shape.format(value) for shape, value in pairs if isinstance(value, int | float)]
    if line.get("skipped"):
        parts.append(f"{line['skipped']} not finite")
    return "  ".join(parts)


class Quiet:
    """Nothing."""

    def begin(self, stage: str, *, total: int, unit: str, seen: int) -> None:
        """Show nothing."""

    def log(self, line: Mapping[str, Any], *, seen: int | None) -> None:
        """Show nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Do nothing."""


class Json(Quiet):
    """One object per line on stdout."""

    def log(self, line: Mapping[str, Any], *, seen: int | None) -> None:
        """Print the line as it stands in the file."""
        print(json.dumps(line), flush=True)

    def say(self, text: str) -> None:
        """Print a note as an object."""
        print(json.dumps({"note": text}), flush=True)


class Plain(Quiet):
    """A line every few seconds on stderr, with the rate and the time left."""

    def begin(self, stage: str, *, total: int, unit: str, seen: int) -> None:
        """Start a stage."""
        self.end()
        self.total = total
        self.first, self.since, self.last, self.pending = seen, time.monotonic(), 0.0, ""

    def log(self, line: Mapping[str, Any], *, seen: int | None) -> None:
        """Print the step when the last line is old enough."""
        if seen is None:
            return
        now = time.monotonic()
        rate = (seen - self.first) / max(now - self.since, 1e-9)
        left = max(0, self.total - seen) / rate if rate > 0 else 0.0
        share = f"{min(1.0, seen / max(1, self.total)):4.0%}"
        self.pending = f"{line['stage']:<12} {share}  {_summary(line)}  eta {clock(left)}"
        if now - self.last >= SECONDS:
            self.end()
            self.last = now

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Print the last step, if it was not yet."""
        if getattr(self, "pending", ""):
            print(self.pending, file=sys.stderr, flush=True)
            self.pending = ""


class Rich:
    """A bar per stage on stderr."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[summary]}"),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
        )
        self.terminal = Terminal(stderr=True)
        self.columns = columns
        self.bar: Progress | None = None
        self.task: TaskID = TaskID(0)

    def begin(self, stage: str, *, total: int, unit: str, seen: int) -> None:
        """Start a bar."""
        self.end()
        self.bar = Progress(*self.columns, console=self.terminal, speed_estimate_period=60)
        self.task = self.bar.add_task(stage, total=total, completed=seen, summary="")
        self.bar.start()

    def log(self, line: Mapping[str, Any], *, seen: int | None) -> None:
        """Move the bar."""
        if self.bar and seen is not None:
            self.bar.update(self.task, completed=seen, summary=_summary(line))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.terminal.print(text, highlight=False, markup=False)

    def end(self) -> None:
        """Leave the bar where it is."""
        if self.bar:
            self.bar.stop()
            self.bar = None


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


CONSOLES: dict[str, Callable[[], Console]] = {
    "rich": Rich,
    "plain": Plain,
    "json": Json,
    "quiet": Quiet,
}
