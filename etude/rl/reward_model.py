"""A reward model: a stage's trunk, and one vector that reads a reward off the last token.

Its checkpoint is the published layout of the trunk, which any stage of this library and any other
library opens, with two files beside: `reward_head.safetensors`, and `reward_model.json` with the
accuracy on pairs that were held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from etude.errors import EtudeError
from etude.files import read_json
from etude.models import checkpoint, table
from etude.models.describe import behind
from etude.nn.context import Context
from etude.nn.decoder import Decoder
from etude.nn.shared import Shared
from etude.parallel.mesh import Ranks
from etude.rl.paired import ROWS, forward
from etude.rl.pairs import encode
from etude.rl.rows import Told, rows
from etude.text.tokenizer import Tokenizer
from etude.typing import Tensor
from etude.weights.files import opened
from etude.weights.hub import locate

HEAD, ABOUT = "reward_head.safetensors", "reward_model.json"


class RewardDecoder(Decoder):
    """A decoder that scores positions by a vector instead of by the label's probability.

    `Scores.logp` is the reward at each position that has a label, and 0 elsewhere. The output head
    stays as it was.
    """

    beside: Mapping[str, str] = {"reward": HEAD}

    def __init__(self, trunk: Decoder):
        super().__init__(trunk.arch)
        # 1-D: without weight decay, and for Muon no matrix; zeros: every reward starts at 0
        self.reward = nn.Parameter(torch.zeros(trunk.arch.dim))
        self.load_state_dict(trunk.state_dict(), strict=False)
        self.published = trunk.published
        self.to(trunk.embed.weight.device)

    def _score(
        self,
        hidden: Tensor,
        labels: Tensor,
        temperature: float,
        entropy: bool,
        shared: Shared | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        found = hidden.float() @ self.reward.float()
        if shared is not None:
            found = found.flatten()[shared.rows]
        return torch.where(labels >= 0, found, 0.0), None

    def _ahead(
        self,
        x: Tensor,
        hidden: Tensor,
        labels: Tensor,
        segments: Tensor | None,
        ctx: Context,
        temperature: float,
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()  # the extra layers predict tokens


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Scores conversations.

    Attributes:
        model: trunk and head.
        tokenizer: its vocabulary.
        format: chat format it learnt.
        accuracy: share of held-out pairs that it ordered rightly; None where none was measured.
        length: longest conversation, in tokens.
    """

    model: RewardDecoder
    tokenizer: Tokenizer
    format: str | None
    accuracy: float | None
    length: int

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
    ) -> float:
        """Return the reward of a conversation that ends with the model's turn.

        Raises:
            EtudeError: it ends otherwise, or is longer than the model's context.
        """
        return self.batch([messages], tools=tools, thinking=thinking)[0]

    @torch.no_grad()
    def batch(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
    ) -> list[float]:
        """Return the reward of each of several conversations; errors as for one."""
        told = [self._told(messages, tools, thinking) for messages in conversations]
        here, found = Ranks(device=self.model.embed.weight.device), []
        for at in range(0, len(told), ROWS):
            part = rows(told[at : at + ROWS], last=True)
            found += forward(self.model, part, here).logp.sum(1).tolist()
        return found

    def _told(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        thinking: bool | None,
    ) -> Told:
        if not messages or messages[-1].get("role") != "assistant":
            raise EtudeError("messages", "do not end with the assistant's turn", "an answer")
        told = encode(self.tokenizer, messages, tools, thinking, self.format)
        if len(told.ids) > self.length:
            raise EtudeError("messages", f"{len(told.ids)} tokens", f"at most {self.length}")
        return told


def load(path: str | Path, *, device: str | torch.device = "cpu") -> RewardModel:
    """Open a reward model.

    Args:
        path: its checkpoint, the folder of its stage, or of a run whose last stage it is.
        device: where it scores.

    Raises:
        EtudeError: no checkpoint, or one without a reward head.
    """
    folder = locate(str(path))
    inner = folder / "checkpoint"
    folder = inner if (inner / "config.json").exists() else behind(folder)
    if not (folder / HEAD).exists():
        found, do = f"holds no {HEAD}", "name a stage of kind reward_model"
        raise EtudeError(str(folder), found, "the checkpoint of a reward model", do)
    model = RewardDecoder(checkpoint.load(folder, device=device))
    with opened(folder / HEAD) as file:
        names = list(file.keys())
        head = file.get_tensor("reward") if "reward" in names else torch.zeros(0)
    if head.shape != model.reward.shape:
        found = f"shape {list(head.shape)}"
        raise EtudeError(str(folder / HEAD), found, f"{list(model.reward.shape)}, as the trunk")
    with torch.no_grad():
        model.reward.copy_(head)
    model.eval()
    published = model.published
    if published is None or published.tokenizer is None:
        raise EtudeError(str(folder), "holds no tokenizer", "the one it was trained with")
    about = read_json(folder / ABOUT) if (folder / ABOUT).exists() else {}
    return RewardModel(
        model,
        published.tokenizer,
        table.chat_format(published.family, published.config),
        about.get("held_out_accuracy"),
        model.arch.max_length,
    )
