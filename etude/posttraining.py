"""How the stages behind pre-training run: reinforcement learning, and one model from its experts.

Each function takes the workshop, which holds what all stages of a run share, and returns what
`done.json` keeps of the stage.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.data.synth import Chat
from etude.errors import EtudeError
from etude.files import digest, read_json, write_json
from etude.recipe.stages import Rl, Unify
from etude.rl.objective import policy_objective
from etude.rl.source import RolloutSource
from etude.rl.unify import collect

if TYPE_CHECKING:
    from etude.workshop import Workshop

Result = dict[str, Any]
REPEATS = 4  # times one expert's answer is seen at most, where few passed the filters


def unify(shop: "Workshop", stage: Unify) -> Result:
    """Sample the experts once; a resumed stage finds the conversations on disk."""
    home = shop.folder / "stages" / stage.name
    kept = home / "conversations.json"
    identity = shop.names[stage.name]
    if not kept.exists() or _conversations(kept)["identity"] != identity:
        found = collect(
            stage,
            shop.tokenizer,
            shop.model,
            shop.recipe.seed,
            format=shop.library.format,
            say=shop.log.say,
            ranks=shop.ranks,
        )
        plain = [[c.messages, c.tools, c.thinking] for c in found.chats]
        if shop.ranks.main:
            write_json(kept, {"identity": identity, "chats": plain, "counts": found.counts})
        shop.ranks.barrier()
    read = _conversations(kept)
    expert = [Chat(messages, tools, thinking) for messages, tools, thinking in read["chats"]]
    chats = _blend(expert, list(shop.written(stage.data)), stage.expert_share)
    told = {"kept": {name: dict(counts) for name, counts in read["counts"].items()}}
    return shop.fine_tune(stage, iter(chats), digest(identity, "unify"), told)


def reinforce(shop: "Workshop", stage: Rl) -> Result:
    """Train on rollouts of the model itself."""
    model = shop.model(stage.start or "model")
    total = stage.steps * stage.rollout.updates
    source = RolloutSource(
        model,
        shop.tokenizer,
        stage,
        shop.recipe.seed,
        format=shop.library.format,
        records=shop.folder / "rollouts" / f"{stage.name}.jsonl",
        say=shop.log.say,
        ranks=shop.ranks,
    )
    try:
        return shop.train(stage, source, policy_objective(stage), total, model=model)
    finally:
        source.close()


def _conversations(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict) or not {"identity", "chats", "counts"} <= found.keys():
        raise EtudeError(str(path), "is damaged", do="delete it, and the experts are asked again")
    return found


def _blend(expert: list[Chat], written: list[Chat], share: float) -> list[Chat]:
    """Return conversations, `share` of them from the experts as far as `REPEATS` of each allow."""
    if share == 1:
        return expert
    wanted = round(len(written) * share / (1 - share))
    return (expert * min(REPEATS, -(-wanted // max(1, len(expert)))))[:wanted] + written
