"""What a release is made of: archives, versions, citation, change log, bounds of dependencies."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import yaml

import unrolled
from tests import distributions

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == unrolled.__version__
    assert f"## [{unrolled.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert {"arXiv:2306.01129", "arXiv:2404.02446", "arXiv:2309.05858", "arXiv:2405.07987"} == {
        reference["identifiers"][0]["value"] for reference in citation["references"]
    }


def test_weights_say_their_licence_and_their_data() -> None:
    cards = sorted((ROOT / "unrolled/weights").glob("*.md"))
    assert [card.stem for card in cards] == [
        path.stem for path in sorted((ROOT / "unrolled/weights").glob("*.safetensors"))
    ]
    for card in cards:
        front, text = card.read_text().split("---\n")[1:3]
        said = yaml.safe_load(front)
        assert said["license"] == "apache-2.0"
        assert said["datasets"], card
        assert all(word in text for word in ("| data |", "| recipe |", "**Limits.**", "**Licence.**")), card
        assert f"(../unrolled/weights/{card.name})" in (ROOT / "docs/weights.md").read_text(), card


def test_every_dependency_has_a_lower_bound() -> None:
    """`make test-lowest` tests with them; without one it would take the first release there ever was."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["hf"], *extras["test"]]
    assert [each for each in asked if not re.match(r"[\w.-]+>=", each)] == []


def test_constraints_have_what_the_extras_of_development_ask_for() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["docs"], *extras["hf"], *extras["test"], *extras["dev"]]
    names = {re.split(r"[>=<\[]", each)[0].lower().replace("_", "-") for each in asked} - {"unrolled"}
    assert names <= pinned


def test_what_does_not_belong_in_an_archive_is_seen(tmp_path: Path) -> None:
    assert "0 wheels" in distributions.wrong(tmp_path)[0]
    names = sorted(distributions.package())
    with zipfile.ZipFile(tmp_path / "unrolled-1-py3-none-any.whl", "w") as wheel:
        for name in (*names[1:], "tests/conftest.py", "unrolled-1.dist-info/METADATA"):
            wheel.writestr(name, "")
    with tarfile.open(tmp_path / "unrolled-1.tar.gz", "w:gz") as archive:
        for name in (*names, *distributions.SOURCE, "site/index.html"):
            archive.addfile(tarfile.TarInfo(f"unrolled-1/{name}"))
    assert distributions.wrong(tmp_path) == [
        f"wheel: {names[0]} is missing",
        "wheel: tests/conftest.py does not belong",
        "source: site/index.html does not belong",
    ]
