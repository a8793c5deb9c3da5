"""Record the fixtures of the parity tests again: `python -m tests.parity.record`.

Needs transformers. Each case becomes fixtures/<case>/ with config.json, model.safetensors as the
release names its tensors, and expected.safetensors with what transformers computes from them.
"""

import json
import os

import torch
from safetensors.torch import save_file

from tests.parity import published
from tests.parity.cases import FIXTURES


def main() -> None:
    """Write every case and print its size."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    torch.set_num_threads(1)
    for case in published.CASES:
        folder = FIXTURES / case
        folder.mkdir(parents=True, exist_ok=True)
        told = published.make(case, folder)
        save_file(told, folder / "expected.safetensors", metadata=published.note(folder))
        (folder / "generation_config.json").unlink(missing_ok=True)
        for file in folder.iterdir():
            file.chmod(0o644)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{case:10} {size / 1e3:7.1f} kB  {json.dumps(published.CASES[case])}")


if __name__ == "__main__":
    main()
