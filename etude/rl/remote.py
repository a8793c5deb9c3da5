"""The sampler behind a URL: vLLM, SGLang, or what answers like them. Ids in, ids out.

What trains must come from the weights it is counted for. A server that names its weights
(`sync.py` gives the name) is believed and checked: answers of another version are thrown away and
asked again, weights that it has lost are loaded again. Of a server that does not, the first answer
after each update is scored by the trainer.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from etude.errors import EtudeError
from etude.nn.decoder import Decoder
from etude.parallel.mesh import Ranks
from etude.recipe.engines import Remote
from etude.rl import agreement
from etude.rl.remote_http import PAUSE, Client
from etude.rl.remote_servers import UNKNOWN, Cut, Dialect, dialect, listed
from etude.rl.sample import Sample
from etude.rl.sampler import Completion, Prompt, Sampling
from etude.rl.sync import Sync, sync_of
from etude.text.tokenizer import Tokenizer

AGAIN = 3  # times that stale or cut answers are asked again
ALONE = Ranks()


class RemoteSampler:
    """`rl.sampler.Sampler` over a server.

    Args:
        spec: where it is, and how it is treated.
        model: the policy; scores where the server does not say which weights it serves.
        sync: brings weights to it; None = by the recipe's words.
        folder: for checkpoints, where the recipe names none.
        tokenizer: written beside them.
        version: of the weights at the start.
        say: told when weights were stale.
        ranks: the first brings the weights, all sample.
        scores: the model stands still while it samples, so that it can check a server that does not
            say which weights it serves.
        pause: seconds before the first repeated request.
    """

    def __init__(
        self,
        spec: Remote,
        model: Decoder,
        *,
        sync: Sync | None = None,
        folder: Path = Path("published"),
        tokenizer: Tokenizer | None = None,
        version: int = 0,
        say: Callable[[str], None] = lambda text: None,
        ranks: Ranks = ALONE,
        scores: bool = True,
        pause: float = PAUSE,
    ):
        self.spec, self.model, self.version, self.say = spec, model, version, say
        self.folder, self.tokenizer, self.ranks, self.pause = folder, tokenizer, ranks, pause
        self.scores, self._sync, self._name = scores, sync, spec.model
        self._dialect: Dialect | None = None
        self._proved = True  # that the server has the weights of `version`

    async def probe(self) -> None:
        """Ask for one token, to see that the server gives ids and log-probabilities.

        Raises:
            EtudeError: it does not, or nobody answers.
        """
        async with self._client() as client:
            speaks = await self._speaks(client)
            params = Sampling(max_tokens=1)
            body = speaks.body(Prompt([0]), params, self._name)
            speaks.read(await client.post(speaks.path, body), Prompt([0]))
            if self.scores or not speaks.versions:
                return
            if await client.maybe(speaks.versions) is None:
                found = "does not say which weights it serves, which only one rank in mode: sync"
                found += " can check without it"
                do = "start vLLM with VLLM_SERVER_DEV_MODE=1"
                raise EtudeError(client.url, found, do=do, code=1)

    async def sample(self, prompts: Sequence[Prompt], params: Sampling) -> list[Completion]:
        """Answer each prompt, all under the weights of `version`.

        Raises:
            EtudeError: the server is dead, answers in a wrong format, or keeps to other weights.
        """
        if params.routes:
            found = "a server's choice of experts is not read"
            raise EtudeError("rollout.routes", found, do="set it to false, or use engine: local")
        since = self.version
        async with self._client() as client:
            speaks = await self._speaks(client)
            for _ in range(AGAIN + 1):
                told = await self._serves(client, speaks)
                if self._fits(told, since):
                    asked = [self._one(client, speaks, one, params, since) for one in prompts]
                    made = await asyncio.gather(*asked)
                    told = await self._serves(client, speaks)
                    whole = [one for one in made if one is not None]
                    fresh = self._fits(told, since) and len(whole) == len(made)
                    if fresh and (told != UNKNOWN or self._prove(prompts, whole, params)):
                        return whole
                await self._restore(client, told)
        found = f"keeps serving other weights than version {self.version}"
        raise EtudeError(self.spec.url, found, do="see its log, or start it again", code=1)

    async def update(self, weights: Mapping[str, Tensor] | None, version: int) -> None:
        """Bring the weights to the server; None stands for the model's own."""
        async with self._client() as client:
            sync = await self._way(client)
            if self.ranks.main:
                own = self.model.state_dict() if weights is None else weights
                await sync.push(client, own, version)
        self.ranks.barrier()
        self.version, self._proved = version, False

    def _client(self) -> Client:
        spec = self.spec
        how = {"concurrent": spec.concurrent, "seconds": spec.seconds, "retries": spec.retries}
        return Client(spec.url, **how, pause=self.pause)

    async def _speaks(self, client: Client) -> Dialect:
        if self._dialect is None:
            self._dialect = await dialect(client, self.spec.server)
            if self._dialect.name == "vllm" and not self._name:
                self._name = await listed(client)
        return self._dialect

    async def _way(self, client: Client) -> Sync:
        if self._sync is None:
            speaks = await self._speaks(client)
            self._sync = sync_of(self.spec, self.model, speaks, self.folder, self.tokenizer)
        return self._sync

    async def _serves(self, client: Client, speaks: Dialect) -> int:
        """Return the version it says it serves."""
        if not speaks.versions:
            return UNKNOWN
        reply = await client.maybe(speaks.versions)
        return UNKNOWN if reply is None else speaks.version(reply)

    def _fits(self, told: int, since: int) -> bool:
        """Whether weights are those of when the call began, or newer ones brought meanwhile."""
        return told == UNKNOWN or since <= told <= self.version

    async def _one(
        self, client: Client, speaks: Dialect, prompt: Prompt, params: Sampling, since: int
    ) -> Completion | None:
        """Answer one prompt; None where the answer is of other weights."""
        most = min(params.max_tokens, prompt.max_tokens or params.max_tokens)
        body = speaks.body(prompt, replace(params, max_tokens=most), self._name)
        for attempt in range(AGAIN + 1):
            try:
                made = speaks.read(await client.post(speaks.path, body), prompt)
            except Cut:
                await asyncio.sleep(self.pause * 2**attempt)
                continue
            if not self._fits(made.version, since):
                return None
            told = made.version != UNKNOWN
            self._proved = self._proved or told
            return _cut(made if told else replace(made, version=since), params.repetition)
        return None

    def _prove(
        self, prompts: Sequence[Prompt], made: Sequence[Completion], params: Sampling
    ) -> bool:
        """Score the first answer since an update, where no version was told."""
        if self._proved or not made:
            return True
        first, ids, n = made[0], prompts[0].ids, len(prompts[0].ids)
        sample = Sample(list(ids), [False] * n, [0.0] * n, n)
        sample.add(first.tokens, first.logp)
        # vLLM gives raw log-probabilities unless told otherwise
        gaps = [agreement.measure(self.model, [sample], t).mean for t in {params.temperature, 1.0}]
        self._proved = min(gaps) <= self.spec.gap
        if not self._proved:
            self.say(f"{self.spec.url}: log-probabilities are {min(gaps):.2g} nats from ours")
        return self._proved

    async def _restore(self, client: Client, told: int) -> None:
        """Have the weights loaded again that were brought last, where that can be done."""
        named = "unnamed weights" if told == UNKNOWN else f"weights {told}"
        self.say(f"{self.spec.url}: serves {named}, expected version {self.version}; asked again")
        if self.ranks.main:
            await (await self._way(client)).again(client, self.version)
        await asyncio.sleep(self.pause)


def _cut(made: Completion, rule: tuple[int, float] | None) -> Completion:
    """End an answer after the first `rule[0]` tokens in a row that are more probable than rule[1].

    The engine here stops there; a server goes on, and the rest is thrown away.
    """
    if rule is None:
        return made
    run, (most, probability) = 0, rule
    for n, logp in enumerate(made.logp, start=1):
        run = run + 1 if logp > math.log(probability) else 0
        stopped = n == len(made.tokens) and made.finish == "stop"
        if run >= most and not stopped:
            kept = {"tokens": made.tokens[:n], "logp": made.logp[:n]}
            return replace(made, **kept, finish="repetition")
    return made
