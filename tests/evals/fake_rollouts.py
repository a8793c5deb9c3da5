"""Recorded rollouts as training writes them, with text that attacks the page."""

import json
from pathlib import Path
from typing import Any

ATTACK = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>"
PIECES = ["sort", ":", " 1", " 2", ATTACK, "\n", "中"]


def line(step: int, group: int, at: int, reward: float, **more: Any) -> dict[str, Any]:
    """One attempt of two turns: 3 tokens, 2 that it was told, 2 tokens."""
    row: dict[str, Any] = {
        "step": step,
        "key": f"{step}.{group}.{at}",
        "task": f"sort{ATTACK}",
        "level": group,
        "problem": f"p{group}",
        "answer": ATTACK,
        "temperature": 1.0,
        "reward": reward,
        "raw": reward,
        "terms": {"correct": reward},
        "status": "completed",
        "tokens": 5,
        "version": step,
        "age": 0,
        "turns": [
            {"calls": [[ATTACK, {"x": ATTACK}]], "problems": [ATTACK], "heard": ["tool"]},
            {"calls": [], "problems": [], "heard": []},
        ],
        "info": {ATTACK: ATTACK},
        "prompt": 2,
        "ids": [0, 1, 2, 3, 4, 5, 6, 4, 3],
        "pieces": [PIECES[n] for n in (0, 1, 2, 3, 4, 5, 6, 4, 3)],
        "mask": [[2, 5], [7, 9]],
        "logp": [-0.1, -0.2, -2.5, 0.0, -0.0004],
        "advantage": 1.5 * (2 * reward - 1),
    }
    return row | more


def patch(step: int, group: int, at: int, **more: Any) -> dict[str, Any]:
    """What an update saw of that attempt."""
    seen = {"ratio": [1.0, 1.25, 0.5, 1.0, 1.0], "clipped": [1, 2], "entropy": [0.1] * 5}
    return {"step": step, "of": f"{step}.{group}.{at}", "update": 4} | seen | more


def older(step: int, reward: float) -> dict[str, Any]:
    """A line of before tokens were recorded."""
    row = {"step": step, "task": "rev", "level": 1, "answer": "b a", "temperature": 1.0}
    row |= {"prompt": f"reverse: a b{ATTACK}", "reply": "b a", "reward": reward}
    return row | {"status": "completed", "tokens": 4, "turns": 1, "version": 0, "info": {}}


def write(folder: Path, stage: str, rows: list[dict[str, Any] | str]) -> Path:
    """Write a stage's file into a run folder; text stands as it is."""
    path = folder / "rollouts" / f"{stage}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def make(folder: Path, *, steps: int = 3) -> Path:
    """A run folder of one stage: 2 groups of 2 attempts a step, one group with signal."""
    rows: list[dict[str, Any] | str] = []
    for step in range(steps):
        rows += [line(step, 0, 0, 1.0), line(step, 0, 1, 0.0)]
        rows += [line(step, 1, at, 1.0, advantage=0.0, status="truncated") for at in range(2)]
        rows += [patch(step, 0, 0), patch(step, 0, 1)]
    write(folder, "rl", rows)
    return folder
