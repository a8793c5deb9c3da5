"""A run folder as a finished recipe leaves it, with figures drawn from formulas."""

import json
import math
import random
from pathlib import Path
from typing import Any

STAGES = [
    ("pretrain", "pretrain", 62.4, 310_000),
    ("code", "pretrain", 58.1, 262_000),
    ("mid-repo", "midtrain", 41.0, 150_000),
    ("mid-long", "midtrain", 39.5, 120_000),
    ("reasoning-sft", "sft", 71.2, 280_000),
    ("reasoning-rl", "rl", 95.8, 410_000),
    ("unify", "unify", 66.0, 240_000),
    ("rl-hard", "rl", 88.4, 395_000),
    ("eval", "eval", 44.9, None),
]
MEASURED = ["model", "pretrain", "mid-long", "reasoning-sft", "unify", "rl-hard"]
RECIPE = """# GLM-4.5 in miniature (arXiv:2508.06471): every stage of the report. Two CPU cores.
recipe: glm45_quick
seed: 7
model: {family: glm45, size: tiny}
stages:
  - stage: pretrain
    data: {mix: {general: 0.7, code: 0.2, math: 0.1}, length: 128}
    tokens: 310000
"""
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def rows(n: int) -> list[dict[str, Any]]:
    """Figures of the n-th measured stage: better by stage, better with thinking."""
    found: list[dict[str, Any]] = []
    for domain, start in (("general", 4.37), ("code", 4.46), ("math", 5.9), ("technical", 4.8)):
        value = start - (start - 2.4) * (1 - math.exp(-1.1 * n))
        place = {"column": "language", "task": domain, "level": None, "mode": "-", "metric": "bpb"}
        found.append(
            place
            | {
                "value": value,
                "low": value - 0.04,
                "high": value + 0.04,
                "n": 20,
                "baseline": {"n-gram": 3.1, "gzip": 3.6},
            }
        )
    tasks = [
        ("agentic", "calc", [0]),
        ("reasoning", "var", [0, 1]),
        ("reasoning", "sum", [0, 1]),
        ("reasoning", "rev", [1, 2]),
        ("coding", "code", [0]),
        ("agentic", "instruct", [0]),
    ]
    for column, task, levels in tasks:
        for level in levels:
            for mode in ("think", "nothink") if task in ("var", "sum") else ("nothink",):
                top = (0.93 if mode == "think" else 0.36) if column == "reasoning" else 0.85
                base = max(0.0, top * (1 - 0.4 * level) * (1 - math.exp(-0.9 * max(n - 2, 0))))
                place = {"column": column, "task": task, "level": level, "mode": mode}
                for metric, value in (
                    ("greedy", base),
                    ("sampled", base * 0.8),
                    ("pass@4", min(1, base * 1.2)),
                ):
                    found.append(
                        place
                        | {
                            "metric": metric,
                            "value": value,
                            "low": value - 0.03,
                            "high": value + 0.03,
                            "n": 200,
                        }
                    )
                if task == "calc":
                    found.append(
                        place
                        | {
                            "metric": "valid",
                            "value": min(1.0, base * 1.15),
                            "low": None,
                            "high": None,
                            "n": 200,
                        }
                    )
    return found


def metrics(draw: random.Random) -> list[dict[str, Any]]:
    """Steps of every training stage."""
    lines = []
    for stage, kind, _, tokens in STAGES[:-1]:
        steps = 900 if stage == "pretrain" else 90 if kind != "rl" else 30
        for step in range(1, steps + 1):
            done = step / steps
            line: dict[str, Any] = {
                "stage": stage,
                "step": step,
                "tokens": tokens // steps,
                "time": 1.7e9 + step,
            }
            skew = [
                [1 + (0.9 - 0.75 * done) * math.sin(3 * e + layer) for e in range(16)]
                for layer in range(5)
            ]
            line |= {
                "lr": 0.01 * (0.1 + 0.9 * math.cos(done * 1.5)),
                "grad_norm": 0.6 + 0.3 * draw.random(),
                "tok_s": 5000 + 400 * draw.random(),
            }
            line |= {
                "load": [[round(100 * x) for x in row] for row in skew],
                "max_load": 1.9 - 0.75 * done,
            }
            if kind == "rl":
                line |= {
                    "reward": 0.35 + 0.35 * done + 0.05 * draw.random(),
                    "pass": 0.6 + 0.3 * done,
                    "entropy": 0.18 - 0.05 * done,
                    "length": 40 + 3 * draw.random(),
                }
            else:
                line |= {
                    "loss": 2 + 4 * math.exp(-4 * done) + 0.2 * draw.random(),
                    "mtp_loss": 3 + 4 * math.exp(-4 * done),
                }
            lines.append(line)
    lines.append(
        {"stage": "pretrain", "step": 901, "loss": None, "note": "not finite", "skipped": 1}
    )
    return lines


def samples(n: int) -> list[dict[str, Any]]:
    """Answers: right, wrong, with a call, and one that attacks the page."""
    return [
        {
            "task": "var",
            "level": 1,
            "mode": "think",
            "prompt": "k=c+8 t=k-6 c=2 t?",
            "reasoning": "c=2 k=2+8=10 t=10-6=4",
            "reply": "4" if n > 2 else "the the of\n\n=",
            "score": 1.0 if n > 2 else 0.0,
            "answer": "4",
        },
        {
            "task": "rev",
            "level": 2,
            "mode": "nothink",
            "prompt": "reverse: o w n s",
            "reasoning": "",
            "reply": "s n w o",
            "score": 1.0,
            "answer": "s n w o",
        },
        {
            "task": "calc",
            "level": 0,
            "mode": "nothink",
            "prompt": "What is 312 * 47?",
            "reasoning": "",
            "calls": ["calculator({'expression': '312*47'})"],
            "reply": "14663",
            "score": 0.0,
            "answer": "14664",
        },
        {
            "task": "instruct",
            "level": 0,
            "mode": "nothink",
            "prompt": ATTACK,
            "reasoning": ATTACK,
            "reply": ATTACK,
            "score": 0.5,
            "answer": ATTACK,
        },
    ]


def corpus() -> dict[str, Any]:
    """A manifest."""
    domains = {
        "general": (1200, 2.1e6),
        "code": (900, 1.8e6),
        "math": (400, 0.6e6),
        "technical": (300, 0.7e6),
    }
    return {
        "mixture": {"general": 0.4, "code": 0.3, "math": 0.2, "technical": 0.1},
        "domains": {
            k: {
                "train_documents": n,
                "train_bytes": b,
                "held_out_documents": n // 20,
                "held_out_bytes": b / 20,
            }
            for k, (n, b) in domains.items()
        },
        "sources": {
            "standard library": {
                "read": 900,
                "kept": 700,
                "dropped": {"near duplicate": 120, "too short": 80},
            },
            "gensim": {"read": 300, "kept": 250, "dropped": {"too short": 50}},
        },
        "licences": {
            "PSF-2.0": {"documents": 700, "bytes": 1.8e6},
            "LGPL-2.1": {"documents": 250, "bytes": 0.9e6},
            "BSD-3-Clause": {"documents": 200, "bytes": 0.4e6},
        },
    }


def make_run(folder: Path) -> Path:
    """Write the folder."""
    (folder / "evals").mkdir(parents=True)
    (folder / "samples").mkdir()
    stages = [
        {"name": n, "kind": k, "seconds": s, "tokens": t, "status": "done"} for n, k, s, t in STAGES
    ]
    about = {
        "recipe": "glm45_quick",
        "about": "Every stage of the GLM-4.5 report in miniature, on two CPU cores.",
        "seed": 7,
        "last": "rl-hard",
    }
    files: dict[str, Any] = {"run.json": about | {"stages": stages}, "corpus.json": corpus()}
    for n, stage in enumerate(MEASURED):
        files[f"evals/{stage}.json"] = {"stage": stage, "order": n, "rows": rows(n)}
        files[f"samples/{stage}.json"] = samples(n)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "recipe.yaml").write_text(RECIPE + f"# {ATTACK}\n")
    text = "".join(json.dumps(line) + "\n" for line in metrics(random.Random(0)))
    (folder / "metrics.jsonl").write_text(text + '{"stage": "rl-hard", "step": 31, "rew')
    return folder
