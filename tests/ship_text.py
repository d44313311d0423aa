"""The language models that ship, out of the kept cells of `crate-bytes`: `python -m tests.ship_text KEPT DATA`.

Writes the weights, the config and the tokenizer of each; the cards beside them are written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from unrolled.data.tokens import ByteTokenizer
from unrolled.studies.cells import Context
from unrolled.studies.crate.bytes.cells import CRATE, MESA, BytesConfig

WEIGHTS = Path(__file__).resolve().parents[1] / "unrolled" / "weights"
# the first seed's, CRATE-GPT's of the longer training
SHIPPED = {"crate_gpt_nano.bytes": (CRATE, True), "mesanet_nano.bytes": (MESA, False)}


def ship(kept: Path, data_dir: Path) -> None:
    """Write the folder of each, from the trained models kept in `kept`; `data_dir` has the text they were trained on."""
    config = BytesConfig(kept=kept, data_dir=data_dir)
    context = Context(store=kept, data_dir=data_dir)
    for name, (family, long) in SHIPPED.items():
        columns = config.columns(family, long=long)
        cell = next(cell for cell in config.plan if cell.model == family and cell.steps == columns["steps"])
        folder = WEIGHTS / name
        cell.load(context).save_pretrained(folder)
        ByteTokenizer().save(folder)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
