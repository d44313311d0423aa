"""What would have to hold for ISTA's codes to stand in for an autoencoder's; ranges stood here before any result."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from unrolled.studies.claim import AT_MOST_1, CONTROL, NOBODY, Claim
from unrolled.studies.crate.codes.cells import SORTS, Agreement, Codes, CodesConfig, Lasso, Sort, codes_of
from unrolled.studies.crate.compared import of_kind
from unrolled.studies.results import Results, Values

_OURS = "a question of ours"
WORDS: dict[Sort, str] = {"own": "own codes", "random": "random directions", "autoencoder": "autoencoder"}


def worth(
    results: Results[Any],
    config: CodesConfig,
    kind: str,
    sort: Sort,
    key: str,
    *,
    k: int = 0,
    wide: bool = False,
    trained: bool = True,
) -> Values:
    """What codes are worth, by seed; at the k that is judged unless another is given."""
    by_seed: dict[Hashable, float] = {}
    rows = {row.cell: row.result for row in results.of(Codes)}
    for seed in config.seeds:
        network = config.network(kind, config.data, seed, trained=trained)
        result = rows.get(codes_of(config, network, sort, k or config.k, wide=wide))
        if result is not None and result[key] is not None:
            by_seed[seed] = float(result[key])
    return Values(by_seed)


def agreement(results: Results[Any], sort: str, kinds: tuple[str, str], coder: Sort, key: str = "above") -> Values:
    """Correlation of matched atoms less chance (`above`), or either, by the pair of networks.

    Args:
        results: of the study.
        sort: `draw`, `seed` or `kind`, what differs between the two.
        kinds: of the networks.
        coder: whose codes.
        key: `above`, `correlation` or `chance`.
    """
    by_pair: dict[Hashable, float] = {}
    for row in results.of(Agreement):
        one, other = row.cell.pair
        if (row.cell.sort, (one.network.kind, other.network.kind), one.sort) == (sort, kinds, coder):
            values = {**row.result, "above": row.result["correlation"] - row.result["chance"]}
            by_pair[f"{one.network.seed}-{other.network.seed}"] = values[key]
    return Values(by_pair, "pair")


def lasso(results: Results[Any], config: CodesConfig, key: str, *, trained: bool = True) -> Values:
    """Of the layer's own objective."""
    return of_kind(results, Lasso, "crate", config.data, trained=trained).values(key)


def less(results: Results[Any], config: CodesConfig, key: str) -> Values:
    """Of CRATE: what own codes are worth less what the autoencoder's of equal size and sparsity are."""
    return worth(results, config, "crate", "own", key) - worth(results, config, "crate", "autoencoder", key)


def _seeds_less(results: Results[Any], config: CodesConfig) -> Values:
    one, other = (agreement(results, "seed", ("crate", "crate"), sort) for sort in ("own", "autoencoder"))
    return one - other


def _both(key: str, spec: str = ".2f") -> Callable[[Results[Any], CodesConfig], str]:
    def words(results: Results[Any], config: CodesConfig) -> str:
        values = [f"{WORDS[sort]} {worth(results, config, 'crate', sort, key):{spec}}" for sort in SORTS]
        return f" (k = {config.k}: {'; '.join(values)})"

    return words


def _difference(statement: str, key: str, spec: str = "+.3f") -> Claim:
    return Claim(
        statement=statement,
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: less(results, config, key),
        low=0.0,
        spec=spec,
        detail=_both(key, spec.lstrip("+")),
    )


# the answer to the question rests on these: all must hold
NEEDED = (
    _difference(
        "CRATE's own codes rebuild as much of its tokens as an autoencoder's (variance, difference)", "variance"
    ),
    _difference("They bring back as much of the loss when spliced in (share, difference)", "recovered"),
    _difference("Their atoms are as selective for classes (share of variance, difference)", "selectivity"),
    Claim(
        statement="They agree as well between seeds of the network (correlation of matched atoms above chance, "
        "difference)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=_seeds_less,
        low=0.0,
        spec="+.3f",
        detail=lambda results, config: (
            "".join(
                f"; {WORDS[sort]} {agreement(results, 'seed', ('crate', 'crate'), sort):.3f}"
                for sort in ("own", "autoencoder")
            )
            + "; pairs share networks"
        ),
    ),
)
CLAIMS = (
    *NEEDED,
    Claim(
        statement="Own codes of CRATE are more selective for classes than labels that were shuffled (difference)",
        source=CONTROL,
        published="-",
        unjudged=CONTROL,
        value=lambda results, config: (
            worth(results, config, "crate", "own", "selectivity") - worth(results, config, "crate", "own", "shuffled")
        ),
        low=0.0,
        spec="+.3f",
        detail=lambda results, config: (
            f"; untrained {worth(results, config, 'crate', 'own', 'selectivity', trained=False):.3f}"
        ),
    ),
    Claim(
        statement="Autoencoders rebuild more of CRATE's tokens than of a ViT's of its width (variance, difference)",
        source="arXiv 2306.01129: layers make tokens sparse; no number",
        published="none",
        unjudged="the paper says it of CRATE's own codes, and nothing of a ViT's",
        value=lambda results, config: (
            worth(results, config, "crate", "autoencoder", "variance")
            - worth(results, config, "vit", "autoencoder", "variance")
        ),
        low=0.0,
        spec="+.3f",
    ),
    Claim(
        statement="Two autoencoders of the same tokens find the same atoms better than own codes of two networks do "
        "(correlation above chance, difference of means)",
        source=_OURS,
        published="none",
        unjudged=NOBODY,
        value=lambda results, config: (
            agreement(results, "draw", ("crate", "crate"), "autoencoder")
            - agreement(results, "seed", ("crate", "crate"), "own").mean
        ),
        low=0.0,
        spec="+.3f",
    ),
    Claim(
        statement="ISTA's codes say by their dictionary what they code: D A explains the tokens X (share of variance)",
        source="arXiv 2306.01129, eq. 17: A minimises |X - D A|^2 / 2 + lambda |A|",
        published="none",
        unjudged="the paper gives the objective, and does not say how well it is met",
        value=lambda results, config: lasso(results, config, "variance"),
        low=0.5,
        within=AT_MOST_1,
        spec=".2f",
        detail=lambda results, config: (
            f"; untrained {lasso(results, config, 'variance', trained=False):.2f}; lasso of A over that of X "
            f"{lasso(results, config, 'loss'):.2f}"
        ),
    ),
)


def answer(results: Results[Any], config: CodesConfig) -> str:
    """The question's answer, one sentence."""
    places = [claim.came_out(results, config) for claim in NEEDED]
    names = ("rebuilding tokens", "keeping the loss", "selectivity for classes", "agreement between seeds")
    by = {place: [name for name, each in zip(names, places, strict=True) if each == place] for place in places}
    if "not run" in by:
        return "That was not run."
    if "not judged" in by:
        return "This budget does not say."
    if set(by) == {"inside"}:
        return f"Yes, at equal size and sparsity: they are at least as good in {_listed(names)}."
    if worse := by.get("outside"):
        good = by.get("inside", ())
        rest = f", though not behind in {_listed(good)}" if good else ""
        doubt = f"; {_listed(by['undecided'])} undecided" if "undecided" in by else ""
        return f"No: they are behind in {_listed(worse)}{rest}{doubt}."
    return f"Undecided: the intervals of {_listed(by['undecided'])} reach both sides."


def _listed(names: Any) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else str(last)
