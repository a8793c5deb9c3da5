"""A local folder or hub name to a folder on this machine; nothing from the hub is executed."""

from pathlib import Path

from etude.errors import EtudeError

# Plain data only: no *.py, no pickles.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def locate(name: str) -> Path:
    """Return the folder that holds a checkpoint: a local one, or a snapshot of a hub repository.

    Args:
        name: a folder, or `organisation/name` on the hub.

    Raises:
        EtudeError: no such folder, the hub extra is not installed, or the hub does not give it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise EtudeError(name, "is a file", "the folder of a checkpoint", f"try {folder.parent}")
    if _local(name):
        raise EtudeError(name, "no such folder", "a checkpoint, a run, or organisation/name")
    return _download(name)


def _local(name: str) -> bool:
    parts = name.split("/")
    return (
        len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~") or Path(parts[0]).exists()
    )


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EtudeError(
            name,
            "no such folder, and hub names need huggingface_hub",
            do="pip install 'etude[hub]'",
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # the client raises a dozen kinds; each is one line for the user
        raise EtudeError(
            name,
            f"no such folder, and the hub does not give it ({error})",
            "a folder or a hub name",
        ) from error
