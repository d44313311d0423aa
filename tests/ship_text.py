"""The language models that ship, out of the kept cells of `crate-bytes`: `python -m tests.ship_text KEPT DATA`.

Writes the weights, the config and the tokenizer of each, as the first seed's longest training left them; the cards are
written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from unrolled.checksums import write_sums
from unrolled.data.tokens import ByteTokenizer
from unrolled.studies.cells import Context, stored_row
from unrolled.studies.crate.bytes.cells import CRATE, MESA, BytesConfig

WEIGHTS = Path(__file__).resolve().parents[1] / "unrolled" / "weights"
SHIPPED = {"crate_gpt_nano.bytes": CRATE, "mesanet_nano.bytes": MESA}


def ship(kept: Path, data_dir: Path) -> None:
    """Write the folder of each, from the trained models kept in `kept`; `data_dir` has the text they learnt from."""
    config = BytesConfig(kept=kept, data_dir=data_dir)
    context = Context(store=kept, data_dir=data_dir)
    for name, family in SHIPPED.items():
        cell = max((cell for cell in config.plan if cell.model == family), key=lambda cell: (cell.steps, -cell.seed))
        if stored_row(cell, context) is None:
            raise SystemExit(f"{cell.name} is not in {kept}; run `unrolled study crate-bytes` with --kept {kept} first")
        cell.load(context).save_pretrained(WEIGHTS / name)
        ByteTokenizer().save(WEIGHTS / name / "tokenizer.json")
        write_sums(WEIGHTS / name)  # the tokenizer's too


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
