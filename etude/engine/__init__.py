"""Batched, cached generation on the same modules that train: one engine for every family.

| file | holds |
|-|-|
| `request`, `settings` | what is asked, checked, and what comes back; how the engine is set |
| `engine` | `Engine`: submit, step, cancel, open prompts |
| `entry` | a request while the engine has it |
| `scheduler` | who works in a step, who waits, who gives way |
| `ledger`, `pages` | what each holds; pages by number and by content, snapshots |
| `desk`, `store` | the memory itself: rows of those at work, and what outlives them |
| `runner`, `loop` | one pass, and what follows from it |
| `choose`, `draft` | the next id, guesses |
| `generate`, `complete` | the engine for callers who have all prompts and wait for all |
"""

from etude.engine.engine import Engine as Engine
from etude.engine.request import Answer as Answer
from etude.engine.request import Delta as Delta
from etude.engine.request import GenRequest as GenRequest
from etude.engine.request import Limits as Limits
from etude.engine.request import Sampling as Sampling
from etude.engine.request import Stops as Stops
from etude.engine.request import Thinking as Thinking
from etude.engine.request import Want as Want
from etude.engine.settings import Settings as Settings
