"""What several models are shown is divided as in the run that one of them is from."""

from __future__ import annotations

from pathlib import Path

import pytest

from unrolled.subjects.options import DataFlags
from unrolled.subjects.runs import DataOf, data_of, shared_data_of


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, str]:
    """Folders of two runs, as far as is looked."""
    for name, text in {
        "digits": "data: digits\nsplit_seed: 3\nval_fraction: 0.2\nimage_size: 16\n",
        "other": "data: folder\ndata_dir: photos\nsplit_seed: 5\n",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    return {name: str(tmp_path / name) for name in ("digits", "other")}


def test_a_run_says_what_was_not_said(runs: dict[str, str]) -> None:
    assert data_of(runs["digits"]) == DataOf("digits", None, 16, 3, 0.2)
    assert data_of("vit_nano_patch4_32", Path(runs["digits"])) == data_of(runs["digits"])
    assert data_of(runs["digits"], data="folder", data_dir=Path("x")) == DataOf("folder", Path("x"), 16), "of others"
    assert data_of("vit_nano_patch4_32") == DataOf("digits", None, None)


@pytest.mark.parametrize(
    ("models", "flags", "expected"),
    [
        (["vit_nano_patch4_32", "digits"], DataFlags(), ("digits", 3)),
        (["other", "digits"], DataFlags(), ("folder", 5)),
        (["digits", "other"], DataFlags(data="folder"), ("folder", 5)),
        (["vit_nano_patch4_32", "vit_nano_patch2_8"], DataFlags(), ("digits", 0)),
        (["vit_nano_patch4_32.cifar10", "other"], DataFlags(data="cifar10"), ("cifar10", 0)),
    ],
)
def test_the_first_run_on_the_data_divides_them(
    models: list[str], flags: DataFlags, expected: tuple[str, int], runs: dict[str, str]
) -> None:
    own = shared_data_of([runs.get(model, model) for model in models], None, flags)
    assert (own.data, own.split_seed) == expected
    if own.data == "folder":
        assert own.data_dir == Path("photos")
