"""The command line: one verb per thing a user does.

Imports stay inside the verbs, so that help answers at once.
Results go to stdout, progress to stderr. Exit codes: 0 done, 1 failed while working, 2 wrong
request, 130 interrupted.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

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


def _version(wanted: bool) -> None:
    if wanted:
        from etude import __version__

        print(f"etude {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What stands before any verb."""


INTERRUPTED = 130
Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value; a stage by its name: sft.optimizer.learning_rate=1e-3"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
Size = Annotated[str, typer.Argument(help="smoke or full.")]
Out = Annotated[
    Path | None, typer.Option(file_okay=False, help="Run folder; default runs/<recipe>.")
]
Matched = Annotated[
    str | None,
    typer.Option("--match", help="With a swapped part: params or flops, kept by the FFN's width."),
]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    *,
    out: Out = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    match: Matched = None,
    as_json: Json = False,
) -> None:
    """Run a recipe's stages; finished ones are skipped, an interrupted one resumes exactly."""
    from etude.run import train as run

    run(recipe, _matched(overrides, match), out=out, until=until, as_json=as_json)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    *,
    devices: Annotated[int, typer.Option(min=1, help="Devices that share the work.")] = 1,
    rate: Annotated[
        float, typer.Option(min=0, help="FLOP/s of one device; 0 measures this machine.")
    ] = 0.0,
    bandwidth: Annotated[
        float,
        typer.Option(
            min=0,
            help="Bytes/s of its memory, for rollouts; 0: an H100's at that rate, or measured.",
        ),
    ] = 0.0,
    match: Matched = None,
    as_json: Json = False,
) -> None:
    """Say what a recipe will cost before it runs: tokens, FLOPs, time and memory per stage."""
    from etude.data.check import check_names
    from etude.models.describe import by_stage, length_key, planned, swap_told
    from etude.recipe.fit import check_dtype, check_fit
    from etude.recipe.load import load
    from etude.recipe.plan import cost, machine_rate, table
    from etude.recipe.plan_rl import machine_bandwidth, rl_costs, told
    from etude.run import has_gpu

    checked = load(recipe, _matched(overrides, match))
    # a rate that is given is that of another machine, which may have a GPU
    check_dtype(checked, processes=devices, gpu=lambda: rate > 0 or has_gpu())
    decoder = planned(checked)
    others = by_stage(checked)
    check_fit(checked, decoder, others, key=length_key(checked))
    check_names(checked, ready=False)
    found = rate or machine_rate()
    rows = cost(checked, decoder, found, devices=devices, others=others)
    speed = bandwidth or (0.0 if rate else machine_bandwidth())
    sampled = rl_costs(checked, decoder, found, speed, devices=devices, others=others)
    if as_json:
        for row in rows:
            rollouts = {"rollouts": sampled[row.name].as_dict()} if row.name in sampled else {}
            _json(row.as_dict() | rollouts)
    else:
        print(table(checked, decoder, rows))
        if sampled:
            print(told(list(sampled.values())))
        if checked.model.swapped:
            print(swap_told(checked))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="glm45, glm45-air, glm45-tiny, a recipe, a checkpoint folder, `recipes`, or "
            "`stage`."
        ),
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(help="With `stage`: which kind, e.g. rl; else model.mixer=lightning etc."),
    ] = None,
    *,
    match: Matched = None,
) -> None:
    """Show a composed model on one page, the shipped recipes, or the fields of a stage."""
    from etude.models.describe import named, planned, recipe_of, swap_told
    from etude.recipe.explain import describe_stage
    from etude.recipe.load import load, shipped
    from etude.show import page

    rest = [*(more or ()), *([f"--match {match}"] if match else ())]
    if len(rest) > (name == "stage") and name in ("recipes", "stage"):
        raise EtudeError(f"show {name}", f"{rest[-1]} behind it", "nothing more")
    if name == "recipes":
        print("\n".join(f"{one:18s} {load(one).about}" for one in shipped()))
    elif name == "stage":
        print(describe_stage(more[0] if more else ""))
    elif more or match or name in shipped() or name.endswith((".yaml", ".yml")):
        checked = recipe_of(name, _matched(more, match))
        print(page(checked.recipe, planned(checked)), end="")
        if checked.model.swapped:
            print(swap_told(checked))
    else:
        print(page(name, named(name)), end="")


@app.command()
def chat(
    checkpoint: Annotated[
        str, typer.Argument(help="A run folder, a checkpoint folder or a hub name.")
    ],
    *,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    weights: Annotated[
        Literal["stored", "int8"], typer.Option(help="int8 rounds them for inference.")
    ] = "stored",
    kernels: Annotated[bool, typer.Option(help="Build C++ kernels, once, and use them.")] = False,
) -> None:
    """Talk to a trained model: /think /nothink /tools /fold /reset /help /quit."""
    from etude.chat_ui import chat as talk
    from etude.models.checkpoint import load
    from etude.nn.int8 import served

    model = served(load(checkpoint), weights=weights, kernels=kernels)
    talk(model, temperature=temperature, max_tokens=max_tokens, seed=seed)


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
def rollouts(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    *,
    stage: Annotated[str | None, typer.Option(help="Only this stage's.")] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Page; default RUN/rollouts.html.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Most rollouts; whole groups, at even distances.")
    ] = 10_000,
    plain: Annotated[
        bool, typer.Option("--plain", help="Leave the data unpacked, for old browsers.")
    ] = False,
) -> None:
    """Write one offline page of a run's recorded rollouts: tokens, rewards, advantages, clips."""
    from etude.evals.rollouts.page import write_rollouts

    path, found = write_rollouts(run, stage=stage, out=out, limit=limit, plain=plain)
    for name, lines in found.damaged.items():
        if lines:
            print(f"{name}: {lines:,} damaged lines left out", file=sys.stderr)
    if found.count < found.written:
        print(f"{found.count:,} of {found.written:,}; --limit shows more", file=sys.stderr)
    print(path)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint folder, run folder or hub name.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    *,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16, or fp8 or int4 weights; default: as stored."
        ),
    ] = None,
    shard_gb: Annotated[float, typer.Option(min=1e-6, help="Largest shard in GB.")] = 5.0,
) -> None:
    """Rewrite a checkpoint in its published layout, with another dtype or shard size."""
    from etude.models.checkpoint import convert as rewrite

    print(rewrite(source, target, dtype=dtype, shard_bytes=shard_gb * 1e9))


@app.command()
def merge(
    sources: Annotated[
        list[str], typer.Argument(help="Checkpoints of one run at equal distances, in order.")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    shape: Annotated[
        Literal["linear", "sqrt", "cosine"], typer.Option(help="Of the decay that is emulated.")
    ] = "sqrt",
    final: Annotated[float, typer.Option(min=0, max=1, help="Its last factor.")] = 0.0,
) -> None:
    """Weigh checkpoints of a constant rate so that the sum is as if it had decayed over them."""
    from etude.optim.merge import decay_weights
    from etude.train.merge import merge as weigh

    if len(sources) < 2:
        raise EtudeError("merge", f"{len(sources)} checkpoint", "at least 2", code=2)
    weights = decay_weights(len(sources), shape, final=final)
    weigh(sources, weights, out)
    for source, weight in zip(sources, weights, strict=True):
        print(f"{weight:+.4f}  {source}")


@app.command()
def bench(
    work: Annotated[
        str,
        typer.Argument(
            help="train, prefill, decode, memory, longctx, flops, rl, rollout, or all of the first"
            " four."
        ),
    ] = "all",
    *,
    family: Annotated[str, typer.Option(help="Which system, or all.")] = "all",
    threads: Annotated[int, typer.Option(min=0, help="Pinned CPU threads; 0 = all cores.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs to time.")] = 5,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for bench.json and bench.svg.")
    ] = None,
    weights: Annotated[
        Literal["stored", "int8"], typer.Option(help="int8 rounds them for inference.")
    ] = "stored",
    kernels: Annotated[bool, typer.Option(help="Build C++ kernels, once, and use them.")] = False,
    as_json: Json = False,
) -> None:
    """Time etude against transformers on the same weights, interleaved, in one run.

    `longctx` reads and continues contexts of 256 to 65,536 tokens, also with attention alone.
    `flops` times nothing: it counts MiniMax-M1 against DeepSeek-R1 by length.
    `rl` takes steps of GRPO, beside TRL's trainer on the same weights and prompts.
    `rollout` writes eight answers behind contexts of 256 to 16,384 tokens.
    """
    if work == "rl":
        from etude.bench import rl

        rl.run(threads=threads, repeats=repeats, kernels=kernels, as_json=as_json, out=out)
        return
    if work == "rollout":
        from etude.bench import rollout

        rollout.run(family, threads=threads, as_json=as_json, out=out)
        return
    if work == "flops":
        from etude.bench import flops

        flops.run(out=out, as_json=as_json)
        return
    if work == "longctx":
        from etude.bench import longctx

        longctx.run(family, threads=threads, as_json=as_json, out=out)
        return
    from etude.bench.pair import run

    how = {"threads": threads, "repeats": repeats, "weights": weights, "kernels": kernels}
    run(work, family=family, as_json=as_json, out=out, **how)


@data_app.command(name="build")
def data_build(
    size: Size = "smoke",
) -> None:
    """Build the embedded corpus from the packages on this machine; cached by content."""
    from etude.data.corpus import build, show
    from etude.train.log import reporter

    with reporter() as progress:
        corpus = build(size, progress=progress)
    print(show(corpus))


@data_app.command(name="show")
def data_show(
    size: Size = "smoke",
) -> None:
    """Show the manifest of the corpus: counts, licences, and why documents were dropped."""
    data_build(size)


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


@data_app.command(name="export")
def data_export(
    format: Annotated[Literal["verl", "verifiers"], typer.Argument(help="verl or verifiers.")],
    out: Annotated[Path, typer.Argument(file_okay=False, help="New folder.")],
    families: Annotated[list[str], typer.Argument(help="Task families: rev sort:1,2 rg:gcd.")],
    *,
    count: Annotated[int, typer.Option(min=1, help="Questions that train.")] = 1000,
    held: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Write checkable tasks and their reward for verl, or as a verifiers package (prime-rl)."""
    from etude.rl.export import export

    print(export(format, out, families, count=count, held=held, seed=seed))


def _matched(overrides: list[str] | None, match: str | None) -> list[str]:
    return [*(overrides or ()), *([f"model.match={match}"] if match else ())]


def _json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def main() -> None:
    """Run a verb; answer a wrong request or a fault with one line."""
    try:
        code = app(standalone_mode=False)  # 130 where typer has taken a Ctrl-C for itself
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except EtudeError as error:
        if not _rank():  # torchrun's other ranks would only repeat it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except PermissionError as error:
        do = "choose another, or ask its owner"
        told = EtudeError(str(error.filename), f"cannot be opened ({error.strerror})", do=do)
        print(f"error: {told}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            _usage(error)
        raise


def _rank() -> int:
    from etude.parallel.environ import process

    try:
        return process().rank
    except EtudeError:  # a rank that does not know which one it is must speak
        return 0


def _usage(error: Any) -> None:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    only_help = type(error).__name__ == "NoArgsIsHelpError"  # a verb is missing: its text is help
    print(text if only_help else f"error: {text}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
