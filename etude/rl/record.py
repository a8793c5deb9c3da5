"""A few rollouts per step as lines of JSON, for people: what was asked, answered and rewarded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etude.errors import EtudeError
from etude.files import atomic
from etude.rl.rollout import Sample
from etude.text.tokenizer import Tokenizer

LETTERS = 2000  # of a prompt or a reply, at most


class Records:
    """Appends to one stage's file; the lines of steps that are run again are dropped first.

    Args:
        path: `rollouts/<stage>.jsonl` of the run, or None to write nothing.
        tokenizer: turns ids into text.
    """

    def __init__(self, path: Path | None, tokenizer: Tokenizer):
        self.path, self.tokenizer = path, tokenizer

    def rewind(self, step: int) -> None:
        """Drop the lines of `step` and later, and a line that was cut."""
        if self.path is None or not self.path.exists():
            return
        lines = [line for line in self.path.read_text(encoding="utf-8").split("\n") if line]
        with atomic(self.path, "w") as file:
            file.writelines(line + "\n" for line in lines if _step(line) < step)

    def write(self, step: int, samples: Sequence[Sample], **common: Any) -> None:
        """Append attempts, each with what is `common` to them.

        Raises:
            EtudeError: the file cannot be written.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                for sample in samples:
                    row = {"step": step} | common | self._row(sample)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            where, why = str(self.path), error.strerror or str(error)
            raise EtudeError(where, f"cannot be written ({why})", code=1) from error

    def _row(self, sample: Sample) -> dict[str, Any]:
        prompt, rest = sample.ids[: sample.prompt], sample.ids[sample.prompt :]
        return {
            "prompt": self.tokenizer.decode(prompt)[-LETTERS:],
            "reply": self.tokenizer.decode(rest)[:LETTERS],
            "reward": sample.reward,
            "status": sample.status,
            "tokens": sample.length,
            "turns": sample.turns,
            "version": sample.version,
            "info": sample.info,
        }


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
