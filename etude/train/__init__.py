"""The one training loop, its checkpoints and its log.

`etude.train(recipe, overrides)` runs a recipe (`etude.run.train`): the package of the same name is
itself callable, so that importing one of its modules does not hide the function.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **how: Any) -> Any:
        """Run a recipe; see `etude.run.train`."""
        return import_module("etude.run").train(*args, **how)  # a layer above, so not by `import`


sys.modules[__name__].__class__ = _Callable
