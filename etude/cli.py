"""The command line: one verb per thing a user does.

Imports stay inside the verbs, so that help answers at once.
Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed while working, 2 wrong
request, 130 interrupted.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from etude.errors import EtudeError

app = typer.Typer(
    name="etude",
    help="Language-model systems, whole: architecture, every training stage, and inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="The embedded corpus: build it, look at it, fetch optional archives.", no_args_is_help=True
)
app.add_typer(data_app, name="data")

INTERRUPTED = 130
Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value; a stage by its name: sft.optimizer.learning_rate=1e-3"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/<recipe>.")]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    *,
    out: Out = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe's stages; finished ones are skipped, an interrupted one resumes exactly."""
    from etude.run import train as run

    run(recipe, overrides or (), out=out, until=until, as_json=as_json)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    *,
    devices: Annotated[int, typer.Option(min=1, help="Devices that share the work.")] = 1,
    rate: Annotated[
        float, typer.Option(min=0, help="FLOP/s of one device; 0 measures this machine.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Say what a recipe will cost before it runs: tokens, FLOPs, time and memory per stage."""
    from etude.data.check import check_names
    from etude.models.describe import describe, own_vocab
    from etude.recipe.fit import check_fit
    from etude.recipe.load import load
    from etude.recipe.plan import cost, machine_rate, table

    checked = load(recipe, overrides or ())
    decoder = describe(checked.model, vocab=own_vocab(checked))
    check_fit(checked, decoder)
    check_names(checked, ready=False)
    rows = cost(checked, decoder, rate or machine_rate(), devices=devices)
    if as_json:
        for row in rows:
            _json(row.as_dict())
    else:
        print(table(checked, decoder, rows))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="glm45, glm45-air, glm45-tiny, a checkpoint folder, `recipes`, or `stage`."
        ),
    ],
    kind: Annotated[str | None, typer.Argument(help="With `stage`: which kind, e.g. rl.")] = None,
) -> None:
    """Show a composed model on one page, the shipped recipes, or the fields of a stage."""
    from etude.models.describe import named
    from etude.recipe.explain import describe_stage
    from etude.recipe.load import load, shipped
    from etude.show import page

    if name == "recipes":
        print("\n".join(f"{one:18s} {load(one).about}" for one in shipped()))
    elif name == "stage":
        print(describe_stage(kind or ""))
    else:
        print(page(name, named(name)), end="")


@app.command()
def chat(
    checkpoint: Annotated[
        str, typer.Argument(help="A run folder, a checkpoint folder or a hub name.")
    ],
    *,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Talk to a trained model: /think /nothink /tools /fold /reset /help /quit."""
    from etude.chat_ui import chat as talk
    from etude.models.checkpoint import load

    talk(load(checkpoint), temperature=temperature, max_tokens=max_tokens, seed=seed)


@app.command(name="eval")
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; several are seeds of one recipe.")
    ],
    *,
    as_json: Json = False,
) -> None:
    """Print the table of a run; of several, the mean and 95 % interval over seeds, and gains."""
    from etude.evals.table import aggregate, render

    table = aggregate(runs)
    if as_json:
        _json(table)
    else:
        print(render(table))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint folder, run folder or hub name.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    *,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored.")
    ] = None,
    shard_gb: Annotated[float, typer.Option(min=1e-6, help="Largest shard in GB.")] = 5.0,
) -> None:
    """Rewrite a checkpoint in its published layout, with another dtype or shard size."""
    from etude.models.checkpoint import convert as rewrite

    print(rewrite(source, target, dtype=dtype, shard_bytes=shard_gb * 1e9))


@app.command()
def bench(
    work: Annotated[str, typer.Argument(help="train, decode or all.")] = "all",
    *,
    family: Annotated[str, typer.Option(help="Which system.")] = "glm45",
    threads: Annotated[int, typer.Option(help="Pinned CPU threads; 0 = all cores.")] = 0,
    repeats: Annotated[int, typer.Option(help="Pairs to time.")] = 5,
    as_json: Json = False,
) -> None:
    """Time etude against transformers on the same weights, interleaved, in one run."""
    from etude.bench.pair import run

    run(work, family=family, threads=threads, repeats=repeats, as_json=as_json)


@data_app.command(name="build")
def data_build(
    size: Annotated[str, typer.Argument(help="smoke or full.")] = "smoke",
) -> None:
    """Build the embedded corpus from the packages on this machine; cached by content."""
    from etude.data.corpus import build, show
    from etude.train.log import reporter

    with reporter() as progress:
        corpus = build(size, progress=progress)
    print(show(corpus))


@data_app.command(name="show")
def data_show(
    size: Annotated[str, typer.Argument(help="smoke or full.")] = "smoke",
) -> None:
    """Show the manifest of the corpus: counts, licences, and why documents were dropped."""
    from etude.data.corpus import build, show
    from etude.train.log import reporter

    with reporter() as progress:
        corpus = build(size, progress=progress)
    print(show(corpus))


@data_app.command(name="fetch")
def data_fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Archives to fetch; none lists them.")
    ] = None,
) -> None:
    """Download optional archives (never done behind your back); the next build uses them."""
    from etude.data.fetch import fetch, listing
    from etude.train.log import reporter

    if not names:
        print(listing())
        return
    with reporter() as progress:
        fetch(names, progress=progress)
    print(listing())


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def main() -> None:
    """Run a verb; answer a wrong request or a fault with one line."""
    try:
        code = app(standalone_mode=False)  # 130 where typer has taken a Ctrl-C for itself
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except EtudeError as error:
        if os.environ.get("RANK", "0") == "0":  # torchrun's other ranks would only repeat it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            _usage(error)
        raise


def _usage(error: Any) -> None:
    print(
        f"error: {error.format_message() if hasattr(error, 'format_message') else error}",
        file=sys.stderr,
    )
    sys.exit(2)


if __name__ == "__main__":
    main()
