"""What `torchrun` tells each process, as it stands in the environment. No torch."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from etude.errors import EtudeError

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
DO = "start with `torchrun --nproc-per-node N`"


class Process(NamedTuple):
    """This process among those that work together.

    Attributes:
        rank: which one it is.
        world: how many there are.
        local: which one it is on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0


def process(environ: Mapping[str, str] | None = None) -> Process:
    """Read which process this is; one that nothing was told is alone.

    Args:
        environ: what torchrun set; None = the process environment.

    Raises:
        EtudeError: a variable is no number, out of range, or missing.
    """
    environ = os.environ if environ is None else environ
    world = _number(environ, "WORLD_SIZE", 1, least=1)
    found = Process(_number(environ, "RANK", 0), world, _number(environ, "LOCAL_RANK", 0))
    if world > 1:
        missing = [name for name in NEEDED if name not in environ]
        if missing:
            raise EtudeError("environment", f"WORLD_SIZE={world} but no {missing[0]}", do=DO)
        _number(environ, "MASTER_PORT", 0)
        if found.rank >= world:
            most = f"less than WORLD_SIZE, {world}"
            raise EtudeError("environment: RANK", str(found.rank), most, DO)
    return found


def _number(environ: Mapping[str, str], name: str, silent: int, *, least: int = 0) -> int:
    text = environ.get(name, str(silent))
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        expected = f"a whole number, {least} or more"
        raise EtudeError(f"environment: {name}", repr(text), expected, f"unset it, or {DO}")
    return int(text)
