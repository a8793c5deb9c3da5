"""Batched, cached generation on the same modules that train: one engine for every family.

| file | holds |
|-|-|
| `request` | what is asked, checked, and what comes back |
| `engine` | `Engine`: submit, step, cancel, open prompts |
| `scheduler` | who works in a step, who waits, who gives way |
| `ledger`, `pages` | what each holds; pages by number and by content, snapshots |
| `store`, `desk` | the memory itself: of those that read, and of those that write |
| `runner`, `loop` | one pass, and what follows from it |
| `choose`, `thinking`, `stops`, `draft` | the next id, reasoning, text, guesses |
| `generate`, `complete` | the engine for callers who have all prompts and wait for all |
"""

from etude.engine.engine import Engine
from etude.engine.request import (
    Answer,
    Delta,
    GenRequest,
    Limits,
    Sampling,
    Stops,
    Thinking,
    Want,
)
from etude.engine.settings import Settings

__all__ = [
    "Answer",
    "Delta",
    "Engine",
    "GenRequest",
    "Limits",
    "Sampling",
    "Settings",
    "Stops",
    "Thinking",
    "Want",
]
