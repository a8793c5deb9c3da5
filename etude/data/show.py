"""A corpus' manifest as a page of text: what went in, what was left out and why."""

from etude.data.documents import Document

Row = tuple[str, ...]


def page(manifest: dict, folder: str, samples: dict[str, list[Document]], characters: int) -> str:
    """Return the whole page.

    Args:
        manifest: of the corpus.
        folder: where it lies.
        samples: documents to show, by domain.
        characters: how much of each.
    """
    parts = [f"corpus {manifest.get('size') or 'of own numbers'} in {folder}", _domains(manifest)]
    parts += [_sources(manifest), _buckets(manifest), _draws(manifest)]
    parts += [_licences(manifest), _notes(manifest)]
    for domain, documents in samples.items():
        for d in documents:
            parts.append(f"--- {domain}: {d.source}, {d.name}\n{d.text[:characters]}")
    return "\n\n".join(part for part in parts if part)


def megabytes(size: int) -> str:
    """Write bytes as MB (10^6) with two digits."""
    return f"{size / 1e6:.2f}"


def _domains(manifest: dict) -> str:
    rows: list[Row] = [("domain", "share", "documents", "MB", "MB up-sampled", "held out", "MB")]
    for name, row in manifest["domains"].items():
        share = f"{manifest['mixture'][name]:.0%}"
        train = (str(row["train_documents"]), megabytes(row["train_bytes"]))
        held = (str(row["held_out_documents"]), megabytes(row["held_out_bytes"]))
        rows.append((name, share, *train, megabytes(row["upsampled_bytes"]), *held))
    return table(rows)


def _sources(manifest: dict) -> str:
    rows: list[Row] = [("source", "read", "kept", "MB", "dropped, and why")]
    for name, row in manifest["sources"].items():
        reasons = sorted(row["dropped"].items(), key=lambda item: -item[1])
        why = ", ".join(f"{count} {reason}" for reason, count in reasons)
        rows.append((name, str(row["read"]), str(row["kept"]), megabytes(row["kept_bytes"]), why))
    return table(rows, left=(0, 4))


def _buckets(manifest: dict) -> str:
    rows: list[Row] = [("quality bucket", "documents", "MB", "mean score", "seen")]
    for row in manifest["buckets"]:
        seen = f"{row['copies']} times" if row["copies"] else "dropped"
        score = "" if row["mean_score"] is None else str(row["mean_score"])
        number = str(row["bucket"])
        rows.append((number, str(row["documents"]), megabytes(row["bytes"]), score, seen))
    return table(rows) if len(rows) > 1 else ""


def _draws(manifest: dict) -> str:
    rows: list[Row] = [("drawn by quality", "judged", "kept", "mean score")]
    for row in manifest.get("kept", []):
        counts = (str(row["judged"]), str(row["kept"]))
        rows.append((row["source"], *counts, str(row["mean_score"])))
    return table(rows) if len(rows) > 1 else ""


def _licences(manifest: dict) -> str:
    rows: list[Row] = [("licence (as stated by its package)", "documents", "MB")]
    for name, row in manifest["licences"].items():
        rows.append((name, str(row["documents"]), megabytes(row["bytes"])))
    return table(rows)


def _notes(manifest: dict) -> str:
    lines = [f"held-out packages: {', '.join(manifest['held_out_packages']) or 'none'}"]
    for name, reasons in manifest["missing"].items():
        lines.append(f"not had: {name}: {'; '.join(reasons)} (shares renormalised)")
    for name, (read, wanted) in manifest["short"].items():
        lines.append(f"short: {name} had {megabytes(read)} of {megabytes(wanted)} MB wanted")
    return "\n".join(lines)


def table(rows: list[Row], *, left: tuple[int, ...] = (0,)) -> str:
    """Return rows as aligned columns, the first row a heading; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Row) -> str:
        cells = (
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), *map(line, rows[1:])])
