"""Record the fixtures of the parity tests again: `python -m tests.parity.record [FAMILY ...]`.

Needs transformers. Each case becomes fixtures/<family>-<case>/ with config.json, model.safetensors
as the release names its tensors, and expected.safetensors with what transformers computes.
"""

import json
import os
import sys
from importlib import import_module

import torch
from safetensors.torch import save_file

from tests.parity import published
from tests.parity.cases import FIXTURES, families


def main(chosen: list[str]) -> None:
    """Write every case of the chosen families, by default of all, and print its size."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    torch.set_num_threads(1)
    for family in chosen or families():
        module = import_module(f"tests.parity.{family}")
        for case in module.CASES:
            folder = FIXTURES / f"{family}-{case}"
            folder.mkdir(parents=True, exist_ok=True)
            told = module.make(case, folder)
            save_file(told, folder / "expected.safetensors", metadata=published.note(folder))
            (folder / "generation_config.json").unlink(missing_ok=True)
            for file in folder.iterdir():
                file.chmod(0o644)
            size = sum(file.stat().st_size for file in folder.iterdir())
            print(f"{family}-{case:10} {size / 1e3:7.1f} kB  {json.dumps(module.CASES[case])}")


if __name__ == "__main__":
    main(sys.argv[1:])
