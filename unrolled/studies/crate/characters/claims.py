"""What `crate-characters` asks: nanoGPT's loss, this project's earlier ones, and differences of tuned models."""

from __future__ import annotations

from typing import Any

from unrolled.studies.claim import CONTROL, EARLIER, Claim
from unrolled.studies.crate.bytes.cells import CRATE, MESA, TWIN
from unrolled.studies.crate.characters.cells import CharactersConfig, Counted
from unrolled.studies.crate.characters.networks import CONVOLVED, GPT2, UNCONVOLVED, Trained, Trial
from unrolled.studies.results import Results, Values

PUBLISHED = "GPT-2, nanoGPT's recipe"


class View:
    """The results as the page reads them, losses in nats a character; of what was not run there are no values."""

    def __init__(self, results: Results[Any], config: CharactersConfig) -> None:
        self.results, self.config = results, config

    def networks(self, family: str, *, timed: bool = False) -> Results[Trained]:
        """The trainings of a family, one row a seed; GPT-2 is itself what takes its time."""
        if family == PUBLISHED:
            return self.results.of(Trained, **self.config.published_columns)
        return self.results.of(Trained, **self.config.columns(family, timed=timed and family != GPT2))

    def losses(self, family: str, *, after: int = 0, timed: bool = False) -> Values:
        """On the validation part, at the end or after so many steps."""

        def at(result: Any) -> float | None:
            steps = after or result["steps"]
            return next((look["loss"] for look in result["curve"] if look["step"] == steps), None)

        return self.networks(family, timed=timed).values(at)

    def counted(self, path: str) -> Any:
        """A result of counting; None if it was not run."""
        return self.results.of(Counted).first(path)

    def trials(self, family: str) -> list[Values]:
        """Losses on the tail at the end of the trials that chose for a family."""
        trials = Trained(**self.config.columns(family), seed=0).trials
        return [Results[Trial](row for row in self.results if row.cell == each).values("loss") for each in trials]


def _loss(family: str, statement: str, *, after: int = 0, **claim: Any) -> Claim:
    def value(results: Results[Any], config: CharactersConfig) -> Values:
        return View(results, config).losses(family, after=after)

    return _claim(statement, value, spec=".3f", **claim)


def _behind(one: str, other: str, statement: str, *, after: int = 0, timed: bool = False, **claim: Any) -> Claim:
    """Loss of one family less that of another."""

    def value(results: Results[Any], config: CharactersConfig) -> Values:
        view = View(results, config)
        return view.losses(one, after=after, timed=timed) - view.losses(other, after=after, timed=timed)

    def asked(config: CharactersConfig) -> bool:
        trained = {one, other} - {PUBLISHED}
        return trained <= set(config.families) and not (timed and trained - {GPT2, *config.as_long})

    control = {"source": CONTROL, "published": "none", "unjudged": CONTROL}
    return _claim(statement, value, spec="+.3f", asked=asked, **{**control, **claim})


def _claim(statement: str, value: Any, **claim: Any) -> Claim:
    def detail(results: Results[Any], config: CharactersConfig) -> str:
        values = value(results, config)
        return f" ({values.count})" if values else ""

    return Claim(statement=f"{statement} (nats a character)", value=value, detail=detail, **claim)


def _earlier(published: str) -> dict[str, Any]:
    return {"source": "a run of this project, one seed, rates not tuned", "published": published, "unjudged": EARLIER}


CLAIMS = (
    _loss(
        PUBLISHED,
        "GPT-2 by nanoGPT's recipe on a CPU, validation loss",
        source="nanoGPT, README (Karpathy 2022), `train_shakespeare_char.py` on a CPU",
        published="1.88, of 20 batches of 12 random excerpts, so with a standard error of about 0.018",
        low=1.84,
        high=1.92,
        outside="the same network after half of the steps, 2.08, or with Muon, 1.62",
    ),
    _loss(
        PUBLISHED,
        "GPT-2 by nanoGPT's recipe, validation loss after 500 steps",
        after=500,
        low=2.25,
        high=2.35,
        **_earlier("2.30"),
    ),
    _behind(
        *(MESA, GPT2, "MesaNet less GPT-2 after 500 steps"),
        after=500,
        high=0.0,
        **_earlier("1.97 less 2.30"),
    ),
    _behind(
        *(CRATE, GPT2, "CRATE-GPT less GPT-2 after 500 steps"),
        after=500,
        low=0.0,
        **_earlier("2.43, with a quarter of the parameters, less 2.30"),
    ),
    _behind(*(GPT2, PUBLISHED, "What tuning gives GPT-2"), high=0.0),
    _behind(*(MESA, GPT2, "MesaNet less GPT-2 after as many characters"), high=0.0),
    _behind(*(MESA, GPT2, "MesaNet less GPT-2 after as much processor time"), timed=True),
    _behind(
        *(MESA, TWIN, "MesaNet less softmax attention in a frame of today after as many characters"),
        source="arXiv 2506.05233, table 2, 940M parameters, SlimPajama",
        published="perplexity 10.83 against 10.86, a difference of -0.003 nats per token",
        unjudged="`crate-bytes` judges it on more text",
        low=-0.05,
        high=0.05,
    ),
    _behind(
        *(MESA, TWIN, "MesaNet less softmax attention in a frame of today after as much processor time"), timed=True
    ),
    _behind(*(MESA, CONVOLVED, "MesaNet less softmax attention with its convolution")),
    _behind(*(UNCONVOLVED, TWIN, "MesaNet without its convolution less softmax attention")),
    _behind(*(CONVOLVED, TWIN, "What the convolution gives softmax attention"), high=0.0),
    _behind(
        *(CRATE, GPT2, "CRATE-GPT less GPT-2 after as many characters"),
        source="Learning Deep Representations of Data Distributions (book), table of CRATE-GPT; OpenWebText",
        published="3.37 (CRATE base, 60M) against 3.04 (GPT-2 small, 64M) and 2.85 (base, 124M), nats per BPE token",
        unjudged="",
        outside="models that learn as fast: 0",
        low=0.0,
    ),
    _behind(*(CRATE, GPT2, "CRATE-GPT less GPT-2 after as much processor time"), timed=True, low=0.0),
)
