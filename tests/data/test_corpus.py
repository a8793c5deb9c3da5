import json
import random
import time
from collections import Counter

import pytest

from etude.data import corpus, mix
from etude.data.documents import Document
from etude.data.pipeline import Recipe
from etude.data.sources import Source
from etude.errors import EtudeError

STEMS = [a + b for a in "bcdfghklmnprst" for b in ("ado", "elin", "imor", "ona", "usk", "ytre")]


def prose(seed: int, words: str = "the river and the mill that was in a town of old") -> str:
    """Return about 120 words that pass the rules and resemble no other seed's."""
    draw = random.Random(seed)
    return " ".join(
        draw.choice(words.split() if draw.random() < 0.4 else STEMS) for _ in range(120)
    )


def code(seed: int) -> str:
    names = random.Random(seed).choices(STEMS, k=12)
    body = [
        f'def {n}(x):\n    """Return {n} of x."""\n    return x + {i}\n'
        for i, n in enumerate(names)
    ]
    return "\n\n".join(dict.fromkeys(body))


def made(name: str, domain: str, texts: list[str], **options) -> Source:
    """A source of given texts; for code the text's place also names its package."""

    def read(wanted, tally):
        for number, text in enumerate(texts):
            group = f"package{number % 20}" if domain == "code" else name
            yield Document(text, domain, group, f"{group}/{number}", "MIT")

    options = {"filter": "code" if domain == "code" else "prose"} | options
    return Source(name, domain, 1.0, "1", read, **options)


def everything() -> list[Source]:
    good = [prose(i) for i in range(60)]
    noise = [prose(1000 + i, "click the endpoint to a quota and it is of an") for i in range(40)]
    notes = [prose(2000 + i) for i in range(40)]
    return [
        made("good", "general", [*good, good[3].upper(), "too short"], quality="reference"),
        made("noise", "general", noise, quality="noisy"),
        made("code", "code", [code(i) for i in range(60)]),
        made("notes", "technical", [*notes, notes[3]], filter="docstring"),
        Source("lost", "math", 1.0, "absent", None, missing=("kite is not installed",)),
    ]


RECIPE = Recipe(bytes=1_000_000)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return corpus.build(
        RECIPE, folder=tmp_path_factory.mktemp("c") / "corpus", sources=everything()
    )


def names(found: corpus.Corpus, split: str) -> set[tuple[str, str]]:
    return {(d.domain, d.name) for x in found.domains for d in found.documents(x, split)}


def test_every_document_read_is_kept_or_has_a_reason(built):
    for row in built.manifest["sources"].values():
        assert row["read"] == row["kept"] + sum(row["dropped"].values())
    dropped = built.manifest["sources"]["good"]["dropped"]
    assert dropped["too few words"] == 1
    assert dropped["little but paragraphs seen before"] == 1
    assert "exact duplicate" in str(built.manifest["sources"]["notes"]["dropped"])


def test_counts_in_the_manifest_are_those_of_the_files(built):
    for domain, row in built.manifest["domains"].items():
        train = list(built.documents(domain))
        assert row["train_documents"] == len(train)
        assert row["train_bytes"] == sum(d.size_bytes for d in train)
        assert row["held_out_documents"] == len(list(built.documents(domain, "held_out"))) > 0
    assert built.manifest["licences"]["MIT"]["documents"] == len(names(built, "train")) + len(
        names(built, "held_out")
    )


def test_a_domain_without_a_source_is_said_and_its_share_goes_to_the_others(built):
    assert built.manifest["missing"] == {"lost": ["kite is not installed"]}
    assert built.mixture == pytest.approx({"general": 0.5, "code": 0.375, "technical": 0.125})


def test_whole_packages_of_code_are_held_out(built):
    train = {d.source for d in built.documents("code")}
    held = {d.source for d in built.documents("code", "held_out")}
    assert held and not train & held
    assert built.manifest["held_out_packages"] == sorted(held)


def test_nothing_held_out_is_nearly_repeated_in_training(tmp_path):
    texts = [prose(i) for i in range(80)]
    held = [
        i
        for i, t in enumerate(texts)
        if mix._draw(Document(t, "general", "s", f"s/{i}", "")) < 0.06
    ]
    texts += [texts[i] + " end" for i in held]
    found = corpus.build(RECIPE, folder=tmp_path / "c", sources=[made("s", "general", texts)])
    kept = {name for _, name in names(found, "train") | names(found, "held_out")}
    assert kept == {f"s/{i}" for i in range(80)}
    assert {f"s/{i}" for i in held} == {name for _, name in names(found, "held_out")} != set()
    dropped = found.manifest["sources"]["s"]["dropped"]
    assert dropped["near duplicate of a held-out document"] == len(held)


def test_the_best_bucket_is_seen_four_times_far_apart_and_the_worst_not_at_all(built):
    plain = list(built.documents("general"))
    shown = [d.name for d in built.documents("general", upsample=True)]
    counts = Counter(shown)
    assert {counts[d.name] for d in plain} == {1, 2, 4}
    assert all(counts[d.name] == d.copies for d in plain)
    best = next(d.name for d in plain if d.copies == 4)
    assert shown.index(best, shown.index(best) + 1) - shown.index(best) > len(plain) / 4
    worst = built.manifest["buckets"][0]
    assert worst["documents"] > 0 and set(worst["sources"]) == {"noise"}
    row = built.manifest["domains"]["general"]
    assert row["upsampled_bytes"] == sum(d.size_bytes * d.copies for d in plain)


def test_the_same_sources_give_the_same_files_byte_for_byte(built, tmp_path):
    again = corpus.build(RECIPE, folder=tmp_path / "again", sources=everything())
    assert again.manifest == built.manifest


def test_a_document_held_out_of_a_small_corpus_is_held_out_of_a_large_one(built, tmp_path):
    small = corpus.build(Recipe(bytes=60_000), folder=tmp_path / "s", sources=everything())
    assert small.manifest["domains"]["general"]["train_bytes"] < 40_000
    drawn = {k for k in names(small, "held_out") if k[0] == "general"}
    assert drawn <= names(built, "held_out") | {min(drawn)}


def test_the_cache_is_used_until_the_content_changes(tmp_path):
    reads = []

    def counted(texts):
        inner = made("s", "general", texts)
        return [
            Source(
                "s",
                "general",
                1.0,
                str(len(texts)),
                lambda *a: (reads.append(1), inner.read(*a))[1],
            )
        ]

    texts = [prose(i) for i in range(12)]
    first = corpus.build(RECIPE, cache=tmp_path, sources=counted(texts))
    again = corpus.build(RECIPE, cache=tmp_path, sources=counted(texts))
    assert (first.folder, len(reads)) == (again.folder, 1)
    other = corpus.build(RECIPE, cache=tmp_path, sources=counted([*texts, prose(99)]))
    assert other.folder != first.folder
    corpus.build(RECIPE, cache=tmp_path, sources=counted(texts), rebuild=True)
    assert len(reads) == 3


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-5]), "corrupt shard of"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"!"), "corrupt shard .its checksum"),
        (lambda p: p.unlink(), "is missing"),
    ],
)
def test_a_corrupt_shard_is_named_with_the_way_to_rebuild(tmp_path, harm, found):
    sources = [made("s", "general", [prose(i) for i in range(12)])]
    folder = corpus.build(RECIPE, cache=tmp_path, sources=sources).folder
    harm(folder / "general.train.00000.jsonl.gz")
    with pytest.raises(
        EtudeError, match=f"general.train.00000.jsonl.gz: .*{found}.*data build"
    ) as e:
        corpus.build(RECIPE, cache=tmp_path, sources=sources)
    assert "\n" not in str(e.value)
    corpus.build(RECIPE, cache=tmp_path, sources=sources, rebuild=True)


def test_a_broken_manifest_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(EtudeError, match=r"manifest.json: is not JSON .*data build"):
        corpus.Corpus(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"files": 3}))
    with pytest.raises(EtudeError, match="is not a corpus manifest"):
        corpus.Corpus(tmp_path)


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EtudeError, match="holds files that are no corpus"):
        corpus.build(RECIPE, folder=tmp_path, sources=everything(), rebuild=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_failure_while_building_leaves_the_old_corpus_whole(tmp_path, built):
    def explode(wanted, tally):
        raise EtudeError("source", "gone")
        yield

    corpus.build(RECIPE, folder=tmp_path / "c", sources=everything())
    with pytest.raises(EtudeError, match="gone"):
        corpus.build(RECIPE, folder=tmp_path / "c", sources=[Source("x", "code", 1.0, "", explode)])
    assert corpus.Corpus(tmp_path / "c").manifest == built.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda c: corpus.build("smok"), "did you mean smoke"),
        (lambda c: c.documents("generel").__next__(), "did you mean general"),
        (lambda c: c.documents("code", "test").__next__(), "train, held_out"),
        (lambda c: corpus.build(RECIPE, sources=[]), "no source gave a document"),
        (lambda c: corpus.build(RECIPE, sources=everything() * 2), "good: named twice"),
    ],
)
def test_a_wrong_request_is_answered_in_one_line(built, call, found):
    with pytest.raises(EtudeError, match=found):
        call(built)


def test_progress_never_runs_past_its_total(tmp_path):
    seen = []
    corpus.build(
        RECIPE, folder=tmp_path / "c", sources=everything(), progress=lambda *a: seen.append(a)
    )
    assert all(0 <= done <= total for _, done, total in seen)
    assert {"reading good", "quality", "near duplicates"} <= {what for what, _, _ in seen}


def test_the_page_shows_counts_reasons_licences_and_what_is_missing(built):
    page = corpus.show(built, samples=1)
    for words in ("too few words", "MIT", "kite is not installed", "held-out packages", "4 times"):
        assert words in page
    assert "--- code: package" in page


def test_shares_add_up_to_one_over_what_is_there():
    assert mix.renormalise(mix.SHARES, ["code", "math"]) == pytest.approx(
        {"code": 0.6, "math": 0.4}
    )
    assert mix.renormalise(mix.SHARES, []) == {}
    own = mix.renormalise(mix.SHARES, ["code", "own"])
    assert sum(own.values()) == pytest.approx(1) and own["own"] > 0


def test_a_small_corpus_is_built_from_what_is_installed(tmp_path):
    """The real readers on this machine, a tenth of the smoke size."""
    for package in ("gensim", "botocore", "sympy"):
        pytest.importorskip(package, reason="the demo extra is not installed")
    found = corpus.build("tiny", cache=tmp_path)
    assert found.domains == ["code", "general", "math", "technical"]
    assert not found.manifest["missing"]
    for domain in found.domains:
        assert list(found.documents(domain, "held_out"))


@pytest.mark.slow
def test_the_smoke_corpus_takes_less_than_half_a_minute_and_the_same_bytes_twice(tmp_path):
    start = time.perf_counter()
    first = corpus.build("smoke", cache=tmp_path / "a")
    assert time.perf_counter() - start < 30
    assert 3_000_000 < sum(r["train_bytes"] for r in first.manifest["domains"].values()) < 6_000_000
    assert corpus.build("smoke", cache=tmp_path / "b").manifest == first.manifest
