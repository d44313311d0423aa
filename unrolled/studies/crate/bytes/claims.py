"""What `crate-bytes` asks: differences of losses between tuned models, by seed, over the mean of all corpora."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from unrolled.studies.claim import CONTROL, NOBODY, Claim
from unrolled.studies.crate.bytes.cells import ALPHA, CRATE, MESA, TWIN, BytesConfig, Counted, Tested, Trained
from unrolled.studies.language import bits
from unrolled.studies.results import Results, Values

_BOOK = "Learning Deep Representations of Data Distributions (book), tables of CRATE-GPT and ToST; OpenWebText"
_LEVEL = "models that learn as fast: 0"


class View:
    """The results as the page reads them, in bits per byte; of what was not run there are no values."""

    def __init__(self, results: Results[Any], config: BytesConfig) -> None:
        self.results, self.config = results, config

    def networks(self, family: str, *, long: bool = False) -> Results[Trained]:
        """The trainings of a family, one row a seed."""
        return self.results.of(Trained, **self.config.columns(family, long=long))

    def tested(self, family: str, *, long: bool = False) -> Results[Tested]:
        """Their tests."""
        return self.results.of(Tested, **self.config.columns(family, long=long))

    def bits(self, family: str, path: str = "read.loss", *, corpus: str = "", long: bool = False) -> Values:
        """A loss on one corpus, by default the mean over all."""
        corpora = (corpus,) if corpus else self.config.corpora

        return self.tested(family, long=long).values(lambda result: _mean(result, path, corpora))

    def counts(self, path: str, corpus: str = "") -> float | None:
        """The same of counting or packing."""
        corpora = (corpus,) if corpus else self.config.corpora
        return next((_mean(row.result, path, corpora) for row in self.results.of(Counted)), None)

    def trials(self, family: str) -> list[Values]:
        """Validation losses at the end of the trials that chose for a family."""
        trials = Trained(**self.config.columns(family), seed=0).trials
        chosen = [Results(row for row in self.results if row.cell == each) for each in trials]
        return [rows.values("validation.-1.loss").map(bits) for rows in chosen]


def _mean(result: Any, path: str, corpora: Sequence[str]) -> float | None:
    """Mean over corpora of the number at keys with dots between them, in bits; None of one that was not computed."""
    numbers = []
    for corpus in corpora:
        number = result["by_corpus"][corpus]
        for key in path.split("."):
            number = number[key]
        numbers.append(number)
    return None if None in numbers else bits(fmean(numbers))


def _behind(
    one: str, other: str, statement: str, *, path: str = "read.loss", long: bool = False, **claim: Any
) -> Claim:
    """Loss of one family less that of another."""

    def value(results: Results[Any], config: BytesConfig) -> Values:
        view = View(results, config)
        return view.bits(one, path, long=long) - view.bits(other, path, long=long)

    def detail(results: Results[Any], config: BytesConfig) -> str:
        values = value(results, config)
        return f" ({values.count})" if values else ""

    def asked(config: BytesConfig) -> bool:
        return {one, other} <= set(config.families) and not (long and {one, other} - set(config.longer))

    statement = f"{statement} (bits per byte)"
    return Claim(statement=statement, value=value, detail=detail, asked=asked, spec="+.3f", **claim)


def _copied(family: str) -> Claim:
    """What a repetition of its context saves a model."""

    def value(results: Results[Any], config: BytesConfig) -> Values:
        view = View(results, config)
        return view.bits(family, "repeated") - view.bits(family, "unrepeated")

    return Claim(
        statement=f"{family} copies what its context repeats (loss on a second half that repeats the first, less on "
        "the same bytes after another first half, bits per byte)",
        source="induction, as in Olsson et al. 2022, with text in place of random tokens",
        published="below 0 for models of two layers and more; no number for bytes",
        value=value,
        unjudged=NOBODY,
        high=0.0,
        spec="+.3f",
        asked=lambda config: family in config.families,
    )


CLAIMS = (
    _behind(
        *(CRATE, "GPT-2", "CRATE-GPT is behind GPT-2"),
        source=_BOOK,
        published="3.37 (CRATE base, 60M) against 3.04 (GPT-2 small, 64M) and 2.85 (base, 124M), nats per BPE token",
        unjudged="GPT-2 has one seed here; `crate-text` judges it with three",
        low=0.0,
    ),
    _behind(
        *(CRATE, TWIN, "CRATE-GPT is behind a LLaMA frame"),
        source=_BOOK,
        published="3.37 (CRATE base, 60M) against 3.04 (GPT-2 small, 64M) and 2.85 (base, 124M), nats per BPE token",
        unjudged="the published numbers are against GPT-2, which is a weaker rival here",
        low=0.0,
    ),
    *(
        _behind(
            *(family, TWIN, f"{family} is behind a LLaMA frame after the longer training"),
            long=True,
            source=CONTROL,
            published="none",
            unjudged=CONTROL,
            low=0.0,
        )
        for family in (CRATE, ALPHA)
    ),
    _behind(
        *(MESA, TWIN, "MesaNet is level with softmax attention in a frame of today"),
        source="arXiv 2506.05233, table 2, 940M parameters, SlimPajama",
        published="perplexity 10.83 against 10.86, a difference of -0.003 nats per token",
        low=-0.05,
        high=0.05,
        outside="models 0.4 bits ahead or 0.5 behind, which there are in `crate-text`",
    ),
    _behind(
        *(MESA, "LLaMA, convolution", "MesaNet beside softmax attention with its convolution"),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
    ),
    _behind(
        *("MesaNet, no convolution", TWIN, "MesaNet without its convolution beside softmax attention"),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
    ),
    _behind(
        *("LLaMA, convolution", TWIN, "What the convolution gives softmax attention"),
        source=CONTROL,
        published="none",
        unjudged=CONTROL,
        high=0.0,
    ),
    _behind(
        *("ToST", "GPT-2", "ToST with its layer scale is behind GPT-2"),
        source=_BOOK,
        published="3.20 (ToST base, 110M) against 2.84 (GPT-2 base, 124M), nats per BPE token",
        unjudged="one seed here; `crate-text` judges it with three, without the layer scale",
        low=0.0,
    ),
    _copied(TWIN),
    _copied(CRATE),
    _copied(MESA),
)
