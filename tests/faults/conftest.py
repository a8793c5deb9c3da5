"""What a user does and sees: the command line in this process, on a recipe that takes a second."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from etude.cli import main
from etude.models import checkpoint
from tests.rl.fakes import tokenizer
from tests.test_run import WHOLE
from tests.train import tiny


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def error(self, code):
        """The one error line of a command that ended with `code` and said nothing else after it."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == code, self.err
        assert len(lines) == 1 and self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err and not self.out
        return lines[0].removeprefix("error: ")


@pytest.fixture
def etude(monkeypatch, capsys, tmp_path):
    """`etude ARGUMENTS` in an empty folder; what it raises but does not answer fails the test."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["etude", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(WHOLE)
    return path


@pytest.fixture(scope="session")
def whole(recipe, tmp_path_factory):
    """A run that nothing disturbed; to read, or to copy."""
    from etude.run import train

    return train(str(recipe), out=tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A tiny checkpoint with its tokenizer; to read, or to copy."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    checkpoint.save(tiny.model(vocab_size=320), folder, tokenizer=tokenizer())
    return folder


@pytest.fixture
def harmed(published, tmp_path):
    return shutil.copytree(published, tmp_path / "harmed")


@pytest.fixture
def mount(tmp_path):
    """Mount something over a new folder; for root on Linux only."""
    made = []

    def over(*arguments):
        place = tmp_path / f"mount{len(made)}"
        place.mkdir()
        command = ["mount", *map(str, arguments), str(place)]
        if sys.platform != "linux" or os.geteuid() or subprocess.run(command).returncode:
            pytest.skip("only root can mount a file system here")
        made.append(place)
        return place

    yield over
    for place in made:
        subprocess.run(["umount", "-l", str(place)], check=True)


def rest(folder: Path) -> list[Path]:
    """What a write that did not end has left behind."""
    return [path for ending in ("part", "old") for path in folder.rglob(f".*.{ending}")]
