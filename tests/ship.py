"""Ship the CRATE-MAE of pixels that `crate-pretrain` trained: `python -m tests.ship --kept runs/kept --data-dir DATA`.

Writes `unrolled/weights/NAME.safetensors`, measures it on the test images, writes its card beside it, and prints the
entry for `unrolled/models/registry.py`. What the study is run with besides its defaults is said here too: `--ship`,
`--rates`, `--trial`. The entry, README's list of weights and CHANGELOG.md are left to the one who commits; commit the
study's page before, since its cells follow from the registry.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unrolled.studies.cells import stored_row
from unrolled.studies.crate.pretrain.cells import SHIPPED, PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "unrolled/weights"
MODEL, TAG = "crate_mae_nano_patch4_32", "cifar10_long"
NAME = f"{MODEL}.{TAG}"
CARD = Path(__file__).with_name("ship_card.md")
UNITS = {"mean": (0.5, 0.5, 0.5), "std": (64 / 255, 64 / 255, 64 / 255)}  # `pictures.as_input`
ENTRY = {"arch": {"encoder": "visible", "compression": "derived"}, **UNITS}
_PACE = 22_200  # images a core-minute, by `benchmarks.pretraining_pace`


def main() -> None:
    """Write weights and card."""
    from safetensors.torch import save_file

    from benchmarks.completion import completion_errors

    default = PretrainConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, default=default.kept)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--ship", type=float, default=default.ship)
    parser.add_argument("--trial", type=float, default=default.trial)
    parser.add_argument("--rates", type=float, nargs="+", default=default.rates)
    asked = parser.parse_args()
    config = PretrainConfig(
        kept=asked.kept, data_dir=asked.data_dir, ship=asked.ship, trial=asked.trial, rates=tuple(asked.rates)
    )
    objective, form = SHIPPED
    network = config.learnt(objective, form, config.seeds[0], config.ship)  # type: ignore[arg-type]
    if (row := stored_row(network, config.context)) is None:
        raise SystemExit(
            f"{config.kept} has no such network; run `unrolled study crate-pretrain --questions ship` first"
        )
    model: Any = network.load(config.context)
    model.pretrained_cfg = {**model.pretrained_cfg, **UNITS}
    file = WEIGHTS / f"{NAME}.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file, metadata={"format": "pt"})
    errors = completion_errors(model, config.data_dir, 10_000)
    count = sum(parameter.numel() for parameter in model.parameters())
    text = card(row.result, config, errors, parameters=count, megabytes=file.stat().st_size / 1e6)
    file.with_suffix("").with_name(f"{NAME}.md").write_text(text, encoding="utf-8")
    print(
        f"{file} and its card are written; now `_SHIPPED` of models/registry.py, of {MODEL}:\n    {TAG!r}: {ENTRY!r},"
    )
    print("then `python -m tests.catalogue`, README.md and CHANGELOG.md")


def card(
    result: Mapping[str, Any],
    config: PretrainConfig,
    errors: Mapping[str, float],
    *,
    parameters: int,
    megabytes: float,
) -> str:
    """The card.

    Args:
        result: of the training.
        config: that it was trained with.
        errors: of `benchmarks.completion`.
        parameters: of the network, fixed positions among them.
        megabytes: of the file.
    """
    gain = 100 * (1 - errors["model"] / errors["harmonic inpainting"])
    return CARD.read_text(encoding="utf-8").format(
        name=NAME,
        model=MODEL,
        parameters=parameters,
        megabytes=megabytes,
        rate=result["rate"],
        rates=", ".join(f"{rate:g}" for rate in config.rates),
        trial=config.trial,
        operations=config.ship,
        images=result["images"],
        minutes=result["images"] / _PACE,
        probe=100 * result["probe"],
        error=errors["model"],
        harmonic=errors["harmonic inpainting"],
        nearest=errors["nearest visible patch"],
        colour=errors["mean colour of visible patches"],
        beside=f"{abs(gain):.0f} % {'below' if gain > 0 else 'above'}",
    )


if __name__ == "__main__":
    main()
