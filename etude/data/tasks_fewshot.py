"""Tasks asked by solved examples in the prompt, which change no weight.

The synthetic ones of GPT-3 (arXiv:2005.14165, sections 3.9.1 and 3.9.2, prompts as in its appendix
G), a choice between continuations of held-out text, and a map that small models can pick up from
its examples. An answer starts with the space that the prompt does not end in.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from etude.data.synth_maps import RULES, SYMBOLS, answered
from etude.data.tasks import HELD_OUT
from etude.errors import EtudeError, closest
from etude.files import digest

MOST_WORDS = 10_000  # the paper's: the most frequent ones
OPTIONS = 4
LONGEST = 16  # letters of a word in a passage: longer ones are rules, links and names of code
MARKS = "!.,-?;/ "  # put between letters: punctuation or a space


@dataclass(frozen=True, slots=True)
class Example:
    """One solved question.

    Attributes:
        prompt: what stands before the answer.
        answer: with its leading space.
        choices: answers to choose between, the right one among them; none for free form.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A task whose examples have nothing to do with each other.

    Args:
        make: draws an example; one in five, by the hash of its prompt, is only ever a question.
        instruction: stands once before the examples; empty where the paper gives none.
        between: stands between examples.
        bare: the context in which a choice is weighed that is no answer to anything.
        forms: `free` where the answer is written, `choice` where it is chosen.
    """

    make: Callable[[random.Random], Example]
    instruction: str = ""
    between: str = "\n"
    bare: str = "A:"
    forms: tuple[str, ...] = ("free",)

    def episode(self, rng: random.Random, shots: int) -> list[Example]:
        """Return so many examples and, last, the question."""
        asked = self._one(rng, held=True)
        return [*(self._one(rng, held=False) for _ in range(shots)), asked]

    def _one(self, rng: random.Random, *, held: bool) -> Example:
        example = self.make(rng)
        for _ in range(200):  # a set of few questions may have none on one side
            if (int(digest("few", example.prompt), 16) % HELD_OUT == 0) == held:
                break
            example = self.make(rng)
        return example


@dataclass(frozen=True, slots=True)
class Maps:
    """Letters that a rule sends to something: the examples alone tell which rule holds.

    Training may hold such lists (the set `maps`), so knowledge of the rules is in the weights; that
    is what examples call up, and without one the rule can only be guessed.
    """

    instruction: str = ""
    between: str = "\n"
    bare: str = "\n"
    forms: tuple[str, ...] = ("free", "choice")

    def episode(self, rng: random.Random, shots: int) -> list[Example]:
        """Return examples of one rule and, last, a letter that none of the first of them shows."""
        rule = rng.choice(list(RULES))
        asked, *others = rng.sample(SYMBOLS, len(SYMBOLS))
        shown = [others[n % len(others)] for n in range(shots)]
        return [self._one(rule, letter) for letter in (*shown, asked)]

    def _one(self, rule: str, letter: str) -> Example:
        every = dict.fromkeys(answered(name, letter) for name in RULES)
        return Example(letter, answered(rule, letter), tuple(every))


Task = Drawn | Maps


def arithmetic(kind: str, rng: random.Random) -> Example:
    """Draw a sum, difference or product of numbers below 10^n, or `1DC`: (2 * 4) * 6.

    Args:
        kind: `2D+`, `2D-` ... `5D-`, `2Dx` or `1DC`.
        rng: decides everything.
    """
    if kind == "1DC":
        a, b, c = (rng.randrange(10) for _ in range(3))
        first, second = (rng.choice("+-*") for _ in range(2))
        inner, outer = f"{a} {first} {b}", rng.random() < 0.5
        text = f"({inner}) {second} {c}" if outer else f"{c} {second} ({inner})"
        return Example(f"Q: What is {text}?\nA:", f" {_value(a, first, b, second, c, outer)}")
    top = 10 ** int(kind[0])
    a, b = rng.randrange(top), rng.randrange(top)
    word, result = {"+": ("plus", a + b), "-": ("minus", a - b), "x": ("times", a * b)}[kind[2]]
    return Example(f"Q: What is {a} {word} {b}?\nA:", f" {result}")


def _value(a: int, first: str, b: int, second: str, c: int, inner_first: bool) -> int:
    apply: dict[str, Callable[[int, int], int]] = {
        "+": int.__add__,
        "-": int.__sub__,
        "*": int.__mul__,
    }
    inner = apply[first](a, b)
    return apply[second](inner, c) if inner_first else apply[second](c, inner)


def scrambled(kind: str, word: str, rng: random.Random) -> str:
    """Return a word in disorder.

    Args:
        kind: `CL` cycles its letters; `A1` and `A2` shuffle all but the first and last one or two;
            `RI` puts a mark or a space between each two letters; `RW` reverses it.
        word: of five letters at least.
        rng: decides everything.
    """
    match kind:
        case "CL":
            at = rng.randrange(1, len(word))
            return word[at:] + word[:at]
        case "A1" | "A2":
            edge = int(kind[1])
            inner = list(word[edge:-edge])
            rng.shuffle(inner)
            return word[:edge] + "".join(inner) + word[-edge:]
        case "RI":
            return word[0] + "".join(rng.choice(MARKS) + letter for letter in word[1:])
        case _:
            return word[::-1]


def frequent_words(texts: Iterable[str]) -> list[str]:
    """Return the words of 5 to 14 letters, the most frequent first, 10,000 at most."""
    seen = Counter(word for text in texts for word in re.findall(r"\b[a-z]{5,14}\b", text))
    return sorted(seen, key=lambda word: (-seen[word], word))[:MOST_WORDS]


def _unscramble(kind: str, words: Sequence[str], rng: random.Random) -> Example:
    word = rng.choice(words)
    return Example(f"{scrambled(kind, word, rng)} =", f" {word}")


def _continuation(
    texts: Sequence[str], rng: random.Random, *, given: int = 20, next_: int = 5
) -> Example:
    """Draw a passage and its next words, among next words of other passages."""
    found: list[tuple[str, str]] = []
    for text in rng.sample(texts, len(texts)):
        words = text.split()
        if len(words) >= given + next_:
            at = rng.randrange(len(words) - given - next_ + 1)
            part = words[at : at + given + next_]
            if max(map(len, part)) <= LONGEST:
                found.append((" ".join(part[:given]), " " + " ".join(part[given:])))
        if len(found) == OPTIONS:
            break
    prompt, answer = found[0]
    choices = [after for _, after in found]
    rng.shuffle(choices)
    return Example(prompt, answer, tuple(choices))


@dataclass(slots=True)
class Materials:
    """What some tasks are made of, read when first asked for.

    Args:
        train: training texts, for words.
        held_out: texts that nothing trains on, for passages.
    """

    train: Callable[[], Iterable[str]]
    held_out: Callable[[], Sequence[str]]
    _words: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """Frequent words of the training text."""
        self._words = self._words or frequent_words(self.train())
        if not self._words:
            raise EtudeError("few-shot words", "the corpus has none", do="leave scrambling out")
        return self._words


ARITHMETIC = ("2D+", "2D-", "3D+", "3D-", "4D+", "4D-", "5D+", "5D-", "2Dx", "1DC")
SCRAMBLING = ("CL", "A1", "A2", "RI", "RW")
UNSCRAMBLE = "Please unscramble the letters into a word, and write that word:\n"
NAMES = ("maps", "continuation", *ARITHMETIC, *SCRAMBLING)


def check(name: str) -> None:
    """Refuse a task that does not exist.

    Raises:
        EtudeError: there is none of this name.
    """
    if name not in NAMES:
        raise EtudeError(
            f"few-shot task {name}", "no such task", ", ".join(NAMES), closest(name, NAMES)
        )


def task(name: str, materials: Materials) -> Task:
    """Return a task by name.

    Raises:
        EtudeError: no such task, or nothing to make it of.
    """
    check(name)
    if name == "maps":
        return Maps()
    if name == "continuation":
        texts = list(materials.held_out())
        if len([t for t in texts if len(t.split()) >= 40]) < OPTIONS:
            raise EtudeError(f"few-shot task {name}", "too few held-out documents", f"{OPTIONS}")
        return Drawn(partial(_continuation, texts), bare="\n", forms=("choice",))
    if name in ARITHMETIC:
        return Drawn(partial(arithmetic, name))
    return Drawn(partial(_unscramble, name, materials.words()), instruction=UNSCRAMBLE)
