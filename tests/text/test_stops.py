"""Text comes out the same however it is cut, and nothing of a stop string does."""

from hypothesis import given, settings
from hypothesis import strategies as st

from etude.text.stops import Writer


class Bytes:
    """A decoder whose ids are bytes of UTF-8."""

    def __init__(self):
        import codecs

        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, *ids):
        return self._decoder.decode(bytes(ids))

    def finish(self):
        return self._decoder.decode(b"", final=True)


class Words:
    """A decoder whose id n is the n-th word."""

    def __init__(self, words):
        self.words = words

    def feed(self, *ids):
        return "".join(self.words[id] for id in ids)

    def finish(self):
        return ""


def write(pieces, count, stops, **how):
    writer, out = Writer(pieces, stops, **how), []
    for id in count:
        out.append(writer.feed(id))
        if writer.hit:
            break
    return "".join([*out, writer.finish()]), writer.hit


def plainly(text, stops):
    """By letters: the first stop string to be complete ends the text before it."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


letters = st.text("ab", max_size=3)


@given(st.lists(letters, max_size=10), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
@settings(max_examples=200)
def test_the_first_complete_stop_string_ends_the_text_however_it_is_cut(words, stops):
    expected = plainly("".join(words), stops)
    assert write(Words(words), range(len(words)), stops) == expected


def test_a_character_appears_once_it_is_whole_and_a_broken_one_at_the_end():
    writer = Writer(Bytes())
    assert [writer.feed(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert writer.feed(0xC3) == "" and writer.finish() == "\ufffd"


def test_what_may_still_become_a_stop_string_waits():
    writer = Writer(Words(["end", "en", "x", "en"]), ["end."])
    assert [writer.feed(n) for n in range(4)] == ["", "end", "enx", ""]
    assert writer.finish() == "en" and not writer.hit


def test_reasoning_does_not_heed_stop_strings_and_does_not_join_what_follows():
    writer = Writer(Words(["a", "b", "ab"]), ["ab"])
    assert [writer.feed(n, heed=False) for n in (0, 1)] == ["a", "b"]
    assert writer.feed(2) == "" and writer.hit
    shown = Writer(Words(["xab"]), ["ab"], shown=True)
    assert shown.feed(0) == "xab" and shown.hit and shown.finish() == ""
