"""No name of a file, a class, a model or a run does anything in a page but stand there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unrolled import cli
from unrolled.figures.escaping import escape
from unrolled.reading import printable

MARK = "alert(1)"
NAMES = {
    "element": f"<img src=x onerror={MARK}>",
    "attribute": f"\"'><svg onload={MARK} a='",
    "address": f"javascript:{MARK}",
    "code": f"`<b>`{MARK}&lt;script&gt;",
    "reversed": f"\u202egnp.{MARK}\u2066",
    "control": f"\x1b[2J\x07{MARK}\r\n",
    "no text": f"\udcff{MARK}",
    "long": MARK + "x" * 240,
}
FEW = ["--batch-size", "8", "--quiet"]


class Page(HTMLParser):
    """Refuses whatever a page that only shows has not; collects its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = ""
        self.feed(path.read_bytes().decode("utf-8"))  # as the page says it is

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "embed", "base", "foreignobject", "animate", "set"}, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in {"srcdoc", "formaction", "action", "http-equiv", "ping", "background"}, (tag, name)
            if name in {"href", "src", "xlink:href", "srcset"}:
                scheme = re.match(r"\s*([a-zA-Z][a-zA-Z0-9+.\-\s]*):", value or "")
                assert scheme is None or scheme[1] == "data", (tag, value)
                if tag == "img":
                    assert value != "x"
            self._seen(value or "")

    def handle_data(self, data: str) -> None:
        self._seen(data)
        self.text += data

    def _seen(self, text: str) -> None:
        assert printable(text, keep="\n\t") == text


def checked(place: Path) -> str:
    """The text of all pages below a folder, which are harmless."""
    pages = sorted(place.rglob("*.html"))
    assert pages
    for drawing in place.rglob("*.svg"):
        Page(drawing)
    return "".join(Page(path).text for path in pages)


# all but what safetensors takes for no path
RUN = "".join(NAMES[kind] for kind in NAMES if kind not in ("no text", "long"))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures of hostile names, in classes of hostile names, and a run on them in a folder of one."""
    root = tmp_path_factory.mktemp("hostile")
    draw = np.random.default_rng(0)
    for label in NAMES.values():
        (root / "data" / label).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            image.save(root / "data" / label / f"{number}{label[:200]}.png")
    (root / "pictures").mkdir()
    for name in (NAMES["element"], NAMES["control"] + NAMES["reversed"], NAMES["no text"]):
        image = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        image.save(root / "pictures" / f"{name[:200]}.png")
    data = ["--data", "folder", "--data-dir", str(root / "data")]
    assert cli.run(["train", *data, "--max-steps", "1", *FEW, "--out", str(root / RUN)]) == 0
    return {"root": root, "pictures": root / "pictures", "run": root / RUN, "coco": coco(root / "coco")}


def coco(folder: Path) -> Path:
    """Annotated photos of hostile names, of categories of hostile names."""
    photos, marks = [], []
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for number, name in enumerate(NAMES[kind][:200] for kind in NAMES if kind != "no text"):
        file = name.replace("/", "_") + ".png"
        Image.fromarray(np.full((32, 32, 3), 30 * number, np.uint8)).save(folder / "val2017" / file)
        photos.append({"id": number, "file_name": file, "width": 32, "height": 32})
        box = {"bbox": [4, 4, 16, 16], "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]], "area": 256, "iscrowd": 0}
        marks.append({"id": number, "image_id": number, "category_id": number, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES.values())]
    found = {"images": photos, "annotations": marks, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(found))
    return folder


COMMANDS = {
    "eval": ["RUN", *FEW],
    "trace": ["RUN", "--images", "2", *FEW],
    "ablate": ["RUN", "--images", "2", "--places", "block00/attn", *FEW],
    "patch": ["RUN", "--images", "2", "--places", "block00/attn", *FEW],
    "probe": ["RUN", "--samples", "24", *FEW],
    "extract": ["RUN", "--images", "6", *FEW],
    "align": ["RUN", "RUN", "--images", "6", "--k", "2", "--draws", "9", *FEW],
    "segment": ["PICTURES", "--model", "RUN", "--layers", "0", "--method", "attention", "--quiet"],
    "explain": ["PICTURE", "--model", "RUN", "--quiet"],
    "complete": ["PICTURES", "--quiet"],
    "segment-eval": ["coco", "--data-dir", "COCO", "--measure", "attention", "--model", "RUN", "--quiet"],
    "finetune": ["--weights", "RUN", "--data", "folder", "--data-dir", "DATA", "--max-steps", "1", *FEW],
    "pretrain": [
        "--data",
        "folder",
        "--data-dir",
        "DATA",
        "--max-steps",
        "1",
        "--model",
        "crate_mae_nano_patch4_32",
        *FEW,
    ],
}
WITHOUT_A_PAGE = {"extract"}


def test_the_page_of_a_run(places: dict[str, Path]) -> None:
    assert MARK in checked(places["run"])


@pytest.mark.parametrize("verb", COMMANDS)
def test_pages_of_verbs(verb: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    picture = places["pictures"] / f"{NAMES['element']}.png"
    given = {name.upper(): str(place) for name, place in places.items()} | {"PICTURE": str(picture)}
    given["DATA"] = str(places["root"] / "data")
    out = places["root"] / f"out-{verb}"
    command = [verb, *(given.get(word, word) for word in COMMANDS[verb]), "--out", str(out)]
    code, said = cli.run(command), capsys.readouterr()
    assert code == 0, said.err
    for stream in said:
        assert printable(stream, keep="\n\t") == stream, "the terminal is told nothing by names"
    if verb not in WITHOUT_A_PAGE:
        assert (MARK in checked(out)) == (verb != "pretrain"), "of pretraining a page names none of them"
        json.loads((out / "report.json").read_bytes())


def test_a_grid_of_models(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    features = []
    for number, name in enumerate(NAMES.values()):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).normal(size=(12, 4)))
        features.append({"model": str(tmp_path / f"{number}.npy"), "group": name, "competence": float(number)})
    entries = dict(zip(NAMES.values(), features, strict=True))
    (tmp_path / "grid.yaml").write_text(json.dumps({"models": entries}))
    assert cli.run(["align-grid", str(tmp_path / "grid.yaml"), "--k", "2", "--out", str(out), "--quiet"]) == 0
    assert MARK in checked(out)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_gallery(name: str, tmp_path: Path) -> None:
    from unrolled.report import Claim, HeatMap, LineChart, Provenance, Report, Series

    report = Report(name, question=name)
    report.headline(name)
    report.claims = [Claim(statement=name, source=name, published=name, measured=name, reproduced=True)]
    report.provenance = Provenance(command=name, config={name: name}, versions={name: name}, hardware={name: name})
    chart = LineChart(title=name, x_label=name, series=[Series(label=name, x=[0, 1], y=[1, 2])])
    table = HeatMap(title=name, values=np.eye(2), rows=[name, "b"], columns=["a", name])
    report.section(name, name).figure([chart, table], caption=name, name="drawn").table([name], [[name]], caption=name)
    report.write(tmp_path / "studies" / f"mesa-{name[:200]}")
    report.write(tmp_path / "studies" / name)
    assert cli.run(["gallery", "--studies", str(tmp_path / "studies"), "--out", str(tmp_path / "site")]) == 0
    assert MARK in checked(tmp_path / "site")
    assert MARK in checked(tmp_path / "studies")


def test_the_explorer_lists_names_as_data(places: dict[str, Path]) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("httpx2")
    from starlette.testclient import TestClient

    from unrolled.explorer import create_app
    from unrolled.explorer.models import Catalogue
    from unrolled.explorer.neighbours import ImageSet

    digits = ImageSet.digits()
    names = ImageSet(RUN, digits.images[: len(NAMES)], list(NAMES.values()))
    app = create_app(Catalogue(runs=places["root"]), lambda: names)
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        assert MARK not in client.get("/").text
        routes = [
            route
            for route in app.routes
            if route.path.startswith("/api/") and "GET" in (getattr(route, "methods", None) or ())
        ]
        answers = [client.get(route.path) for route in routes]
        assert answers
        for answer in answers:
            assert answer.headers["content-type"].startswith(("application/json", "image/png", "text/plain"))
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_explorer_makes_no_elements_of_text() -> None:
    import unrolled.explorer

    for script in (Path(unrolled.explorer.__file__).parent / "static").glob("*.js"):
        text = script.read_text(encoding="utf-8")
        assert re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text) is None


def test_what_is_written_out() -> None:
    assert escape("<a\x1b\u202e\udcff\u2028>") == "&lt;a\\x1b\\u202e\\udcff\\u2028&gt;"
    assert escape("שלום 👩\u200d👩 1\u202f000") == "שלום 👩\u200d👩 1\u202f000"
