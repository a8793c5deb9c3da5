"""Text to token ids and back: byte-level BPE, trained here or read from a published file.

Distinct here: text never turns into a special token unless the caller says so. Published files let
any `<|user|>` typed by a user become the role token itself; `encode` keeps it as letters, and
`special=True` is the one way to ask otherwise.
"""

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from etude.errors import EtudeError, closest
from etude.files import atomic, digest, read_json, write_json
from etude.text import ranks

# Every digit alone, so that a number has one spelling; letters in runs with the space before them;
# a run of signs with its space and the line breaks after it; line breaks with the blanks before
# them; other blanks but the last before a word.
PIECES = r"\p{N}| ?\p{L}[\p{L}\p{M}]*| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

VOCAB, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


class Tokenizer:
    """A byte-level BPE vocabulary with its special tokens.

    Attributes:
        config: what `tokenizer_config.json` holds, written back as it was read.
        template: source of the chat template that belongs to the vocabulary, or None.
        stop_ids: ids at which generation ends when nothing else is said; the end token of the
            configuration, if it has one. A checkpoint replaces it by the list of its own
            configuration.
    """

    def __init__(
        self, core: tokenizers.Tokenizer, *, config: dict[str, Any], template: str | None = None
    ) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.config, self.template = config, template
        self.special: dict[str, int] = {
            token.content: id for id, token in sorted(core.get_added_tokens_decoder().items())
        }
        end = _name(config.get("eos_token"))
        self.stop_ids: list[int] = [self.special[end]] if end in self.special else []

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab: int,
        special: Sequence[str],
        *,
        kept: Sequence[str] = (),
        template: str | None = None,
    ) -> "Tokenizer":
        """Learn a vocabulary; equal texts give an equal vocabulary on any machine.

        Args:
            texts: the training text, read once.
            vocab: number of ids at most, special tokens included; fewer when the text has no more
                pairs to merge.
            special: special tokens in the order of their ids, behind the learned ones; the first
                ends documents and pads.
            kept: those of `special` that other libraries print when told to skip special tokens, as
                `<think>`.
            template: chat template source to keep with the vocabulary.

        Raises:
            EtudeError: `vocab` leaves no room for the 256 bytes and the special tokens, or
                `special` repeats a name.
        """
        least = 256 + len(special)
        if vocab < least:
            raise EtudeError(
                "vocab",
                str(vocab),
                f"at least {least}: 256 bytes and {len(special)} special tokens",
            )
        if len(set(special)) < len(special) or not set(kept) <= set(special):
            raise EtudeError(
                "special", "a name twice, or a kept name that is not among them", "each token once"
            )
        core = tokenizers.Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab - len(special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        core.add_tokens([AddedToken(t, special=t not in kept, normalized=False) for t in special])
        return cls(core, config=_config(special), template=template)

    @staticmethod
    def lies_in(folder: Path) -> bool:
        """Whether a folder holds a tokenizer: one file, vocabulary and merges as two, or ranks."""
        two = all((folder / name).is_file() for name in (VOCAB, MERGES))
        return two or any((folder / name).is_file() for name in ("tokenizer.json", ranks.FILE))

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read the tokenizer files and the chat template of a published folder.

        Older folders have no tokenizer.json, but the vocabulary and the merges in GPT-2's two
        files; those of Kimi have tiktoken's ranks, and are written back as tokenizer.json.

        Raises:
            EtudeError: a file is missing or broken, or the vocabulary is not byte-level BPE.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        config_path, template_path = (
            folder / "tokenizer_config.json",
            folder / "chat_template.jinja",
        )
        config = read_json(config_path) if config_path.exists() else {}
        if path.exists() or not cls.lies_in(folder):
            core = _from_one_file(path)
        elif (folder / ranks.FILE).is_file():
            core = ranks.read(folder / ranks.FILE, config)
            fast = {"tokenizer_class": "PreTrainedTokenizerFast"}  # needs no code of the release
            config = {k: v for k, v in config.items() if k != "auto_map"} | fast
        else:
            core = _from_two_files(folder)
        template = config.get("chat_template")
        if template_path.exists():
            template = template_path.read_text(encoding="utf-8")
        return cls(core, config=config, template=template if isinstance(template, str) else None)

    def save(self, folder: str | Path) -> None:
        """Write the published files, which `AutoTokenizer.from_pretrained` of transformers opens.

        Raises:
            EtudeError: the folder cannot be written.
        """
        folder = Path(folder)
        with atomic(folder / "tokenizer.json", "w") as file:
            file.write(self._core.to_str(pretty=True))
        inside = isinstance(
            self.config.get("chat_template"), str
        )  # older releases keep it in the configuration
        changed = {"chat_template": self.template} if inside and self.template else {}
        write_json(folder / "tokenizer_config.json", self.config | changed)
        if self.template and not inside:
            with atomic(folder / "chat_template.jinja", "w") as file:
                file.write(self.template)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Turn text into ids.

        Args:
            text: any string; a lone half of a surrogate pair becomes U+FFFD.
            special: whether a special token's name in the text becomes that token. Off for all text
                of users and tools.
        """
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """`encode` for many texts, on all threads."""
        core = self._core if special else self._plain
        coded = core.encode_batch_fast([_whole(t) for t in texts], add_special_tokens=False)
        return [row.ids for row in coded]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; rows of the embedding without a token give none."""
        table = self._bytes
        return b"".join(table.get(int(i), b"") for i in ids)

    def decode(self, ids: Iterable[int], *, special: bool = True) -> str:
        """The text that ids stand for; broken UTF-8 shows as U+FFFD.

        Args:
            ids: token ids.
            special: whether special tokens show by name; if not, all go but those that a format
                keeps (`<think>`).
        """
        if not special:
            ids = [i for i in ids if int(i) not in self._hidden]
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self) -> "Stream":
        """A decoder that takes one id at a time."""
        return Stream(self)

    def id(self, name: str) -> int:
        """The id of a special token.

        Raises:
            EtudeError: the vocabulary has no special token of that name.
        """
        if name not in self.special:
            near = closest(name, self.special)
            raise EtudeError("tokenizer", f"no special token {name!r}", do=near)
        return self.special[name]

    @property
    def end(self) -> str:
        """Name of the special token that ends a document.

        Raises:
            EtudeError: the configuration names none.
        """
        name = _name(self.config.get("eos_token"))
        if name not in self.special:
            raise EtudeError("tokenizer: eos_token", repr(name), "the name of a special token")
        return name

    @property
    def key(self) -> str:
        """Name of the content: equal vocabularies have equal keys."""
        return digest(self._core.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of ids a model needs: the largest id and one more."""
        return max(self._core.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same vocabulary with no special token in it, so that no text can make one.

        Neither the `special` flag of a token nor a setting of the library is enough: published
        files carry `<think>` as an ordinary added token, and with `ignore_merges` a whole piece
        equal to a vocabulary entry is that entry.
        """
        layout = json.loads(self._core.to_str())
        layout["added_tokens"], layout["post_processor"] = [], None
        model, names = layout["model"], set(self.special)
        model["vocab"] = {token: id for token, id in model["vocab"].items() if token not in names}
        model["merges"] = [pair for pair in model["merges"] if not names & _products(pair)]
        return tokenizers.Tokenizer.from_str(json.dumps(layout))

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        letters = ranks.letters()
        learned = self._core.get_vocab(with_added_tokens=False)
        table = {
            id: bytes(letters[c] for c in t)
            for t, id in learned.items()
            if letters.keys() >= set(t)
        }
        return table | {id: name.encode() for name, id in self.special.items()}

    @cached_property
    def _hidden(self) -> set[int]:
        return {id for id, token in self._core.get_added_tokens_decoder().items() if token.special}


def _from_one_file(path: Path) -> tokenizers.Tokenizer:
    layout = read_json(path)
    try:
        core = tokenizers.Tokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise EtudeError(str(path), f"cannot be read ({error})", "a tokenizers file") from error
    if layout["model"].get("type") != "BPE" or "ByteLevel" not in json.dumps(layout.get("decoder")):
        raise EtudeError(str(path), "another kind of vocabulary", "byte-level BPE")
    return core


def _from_two_files(folder: Path) -> tokenizers.Tokenizer:
    """Put GPT-2's vocab.json and merges.txt together; the names of its special tokens lie beside.

    A folder without such names has the one of GPT-2, where its vocabulary knows it.
    """
    try:
        learned = models.BPE.from_file(str(folder / VOCAB), str(folder / MERGES))
    except Exception as error:  # as above
        found = f"cannot be read ({error})"
        raise EtudeError(f"{folder / VOCAB} and {MERGES}", found, "a byte-level BPE") from error
    core = tokenizers.Tokenizer(learned)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    beside = [read_json(path) for name in BESIDE if (path := folder / name).is_file()]
    told = (value for part in beside for key, value in part.items() if key.endswith("_token"))
    names = [_name(token) for token in told if isinstance(token, str | dict)] or ["<|endoftext|>"]
    added = read_json(folder / ADDED) if (folder / ADDED).is_file() else {}
    known = [name for name in dict.fromkeys(names) if core.token_to_id(name) is not None]
    known += sorted(added.keys() - set(known), key=added.__getitem__)
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in known])
    for name, id in added.items():
        if core.token_to_id(name) != id:
            raise EtudeError(f"{folder / ADDED}: {name}", str(id), f"{core.token_to_id(name)}")
    return core


class Stream:
    """Text of ids as they come: a character appears once all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, *ids: int) -> str:
        """The text that these ids complete; often a word, sometimes nothing."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left of a character that never came whole."""
        return self._decoder.decode(b"", final=True)


def _products(pair: str | list[str]) -> set[str]:
    """A merge's two parts and its result; files spell it as a pair or as one spaced string."""
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return {left, right, left + right}


def _whole(text: str) -> str:
    """Text that UTF-8 can carry: surrogate pairs joined, lone halves replaced."""
    if not re.search("[\ud800-\udfff]", text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _name(token: str | dict[str, Any] | None) -> str:
    """A token's name; configurations spell it as a string or as an object."""
    return token.get("content", "") if isinstance(token, dict) else token or ""


def _config(special: Sequence[str]) -> dict[str, Any]:
    ends = {"eos_token": special[0], "pad_token": special[0]} if special else {}
    return ends | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
