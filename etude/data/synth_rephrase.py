"""The same facts in many wordings, or in one wording many times: what is remembered better?

Kimi K2 has its knowledge texts rewritten in other styles and perspectives, chunk by chunk with what
was written before as context, and each rewriting checked against its source; ten rewritings seen
once beat one text seen ten times (arXiv:2507.20534, section 2.2, table 1: 28.94 against 23.76). A
language model writes there; here rules do, on facts that are all known, so that the check is exact.
"""

import random
from collections.abc import Iterator, Mapping

from etude.data.documents import Document
from etude.data.facts import GROUPS, PEOPLE, Person, people

TIMES = 10  # each person is told of so often, in either group (the report's table: 10)
LINKS = ("", "", "Also: ", "And: ")  # what joins a sentence to those before it
# By fact and style: {who} is the person, {x} the value.
STYLES: dict[str, tuple[str, ...]] = {
    "town": (
        "{who} lives in {x}.",
        "The home of {who} is in {x}.",
        "{x} is where {who} lives.",
        "Look for {who} in {x}!",
        "In {x} you can meet {who}.",
        "{who} has a house in {x}.",
        "Town of {who}: {x}.",
        "They say that {who} never left {x}.",
        "From {x} comes {who}.",
        "{who} calls {x} home.",
        "A letter for {who}? Send it to {x}.",
    ),
    "work": (
        "{who} works as a {x}.",
        "The work of {who} is that of a {x}.",
        "A {x} by trade is {who}.",
        "You need a {x}? Ask {who}!",
        "Every day {who} works as {x}.",
        "{who} has become a {x}.",
        "Work of {who}: {x}.",
        "They say that {who} is a good {x}.",
        "As a {x}, {who} is known.",
        "{who} earns a living as a {x}.",
        "What does {who} do? The work of a {x}.",
    ),
    "pet": (
        "{who} has a {x}.",
        "The pet of {who} is a {x}.",
        "A {x} belongs to {who}.",
        "Beware of the {x} of {who}!",
        "With a {x} you can see {who}.",
        "{who} keeps a {x} as a pet.",
        "Pet of {who}: {x}.",
        "They say that {who} found a {x}.",
        "One {x} is owned by {who}.",
        "{who} looks after a {x}.",
        "Who feeds the {x}? It is {who}.",
    ),
    "food": (
        "{who} likes {x}.",
        "The food of {who} is {x}.",
        "It is {x} that {who} likes.",
        "Bring {x} for {who}!",
        "For lunch {who} has {x}.",
        "{who} would eat {x} all day.",
        "Food of {who}: {x}.",
        "They say that {who} dreams of {x}.",
        "Of all food, {who} takes {x}.",
        "{who} asks for {x}.",
        "What to cook for {who}? Some {x}.",
    ),
}
HELD = TIMES  # the style behind the others is never trained on


def told(group: str, count: int, seed: int, *, held: bool = False) -> Iterator[Document]:
    """Yield the documents of a group: every person once, then every person again, `TIMES` in all.

    Args:
        group: `rephrased` tells each person in `TIMES` styles; `repeated` in one, word for word,
            which differs between people, so that both groups hold all styles alike.
        count: how many documents at most.
        seed: of the order in which facts are told.
        held: tell each once in a style that no training document has, for evaluation.
    """
    everyone = people(group)
    for number in range(min(count, PEOPLE * (1 if held else TIMES))):
        turn, place = divmod(number, PEOPLE)
        style = HELD if held else (place + (turn if group == GROUPS[0] else 0)) % TIMES
        person = everyone[place]
        text = rewrite(source(person), person, style=style, seed=seed)
        if faithful(text, person):
            yield Document(text, group, group, f"{group}.{turn}.{place}", "generated")


def source(person: Person) -> list[tuple[str, str]]:
    """Return what is known of a person as chunks: one fact each."""
    return list(person.facts.items())


def rewrite(chunks: list[tuple[str, str]], person: Person, *, style: int, seed: int) -> str:
    """Write the chunks in one style, each with the ones before it in view.

    Only what follows on something may be joined to it; the order of the facts goes with the style.

    Args:
        chunks: facts of a person.
        person: of whom they tell.
        style: which wording of each fact.
        seed: of order and joints.
    """
    rng = random.Random(f"{person.name} {style} {seed}")
    written: list[str] = []
    for key, value in rng.sample(chunks, len(chunks)):
        link = rng.choice(LINKS) if written else ""
        written.append(link + STYLES[key][style].format(who=person.name, x=value))
    return " ".join(written) + "\n"


def faithful(text: str, person: Person) -> bool:
    """Say whether a rewriting still holds the name and every fact of its source."""
    values: Mapping[str, str] = person.facts
    return person.name in text and all(value in text for value in values.values())
