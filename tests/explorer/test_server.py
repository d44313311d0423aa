"""The explorer's server: what each address answers, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from tests.files import encoded
from unrolled.explorer import create_app
from unrolled.explorer.app import MAX_UPLOAD, STATIC
from unrolled.explorer.models import Catalogue, prepared
from unrolled.explorer.neighbours import ImageSet, Neighbours
from unrolled.explorer.samples import SAMPLES, sample
from unrolled.explorer.startup import Startup

CRATE, VIT = "random-crate_nano_patch4_32", "random-vit_nano_patch4_32"
LOCAL = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue(specs=["tost_nano_patch4_32", "timm:resnet18", "crate_mae_nano_patch4_32", "crate_nano_patch2_8"])


@pytest.fixture(scope="module")
def client(catalogue: Catalogue) -> Iterator[TestClient]:
    digits = ImageSet.digits()
    few = ImageSet("forty digits", digits.images[:40], digits.names[:40])
    with TestClient(create_app(catalogue, lambda: few), base_url=LOCAL, raise_server_exceptions=True) as client:
        yield client


def photo(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def look(client: TestClient, data: bytes = b"", model: str = CRATE, **asked: Any) -> dict[str, Any]:
    answer = client.post("/api/look", params={"model": model, **asked}, content=data)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_page_brings_everything_it_needs_and_may_load_nothing_else(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "unrolled" in page.text
    assert "https://" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in page.headers
    parts = [path.name for path in STATIC.iterdir()]
    assert {"app.js", "images.js", "world.js", "alignment.js", "style.css"} <= set(parts)
    for part in parts:
        found = client.get(f"/static/{part}")
        assert found.status_code == 200
        assert "https://" not in found.text
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_the_start_lists_models_without_paths(client: TestClient) -> None:
    start = client.get("/api/start").json()
    by_id = {model["id"]: model for model in start["models"]}
    assert set(start["default"]) <= set(by_id)
    assert by_id[CRATE]["trained"] is False
    assert "spec" not in by_id[CRATE]
    assert [sample["name"] for sample in start["samples"]] == list(SAMPLES)
    assert start["limits"]["bytes"] == MAX_UPLOAD


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_pictures(client: TestClient, name: str) -> None:
    answer = client.get(f"/api/sample/{name}")
    assert answer.headers["content-type"] == "image/png"
    assert min(Image.open(io.BytesIO(answer.content)).size) >= 64


def test_a_look_has_attention_colours_and_a_guess(client: TestClient) -> None:
    found = look(client, sample="flower")
    rows, columns = found["grid"]
    layers, heads = found["layers"], found["heads"]
    maps = np.frombuffer(base64.b64decode(found["attention"]["maps"]), "<u2")
    peak = np.array(found["attention"]["peak"])
    assert peak.shape == (layers, heads + 1)
    shares = maps.reshape(layers, heads + 1, rows * columns) / 65535 * peak[..., None]
    np.testing.assert_allclose(shares.mean(-1), 1, atol=1e-3)  # multiples of an even share, on one scale
    np.testing.assert_allclose(shares[:, 1:].mean(1), shares[:, 0], atol=1e-3)
    assert len(base64.b64decode(found["colours"]["maps"])) == layers * rows * columns * 3
    top = [guess["probability"] for guess in found["prediction"]["top"]]
    assert top == sorted(top, reverse=True)
    assert found["model"]["trained"] is False
    assert found["picture"].startswith("data:image/jpeg;base64,")


def test_detail_makes_finer_patches(client: TestClient) -> None:
    grids = [look(client, sample="shapes", detail=detail)["grid"] for detail in (1, 2, 3)]
    assert [rows for rows, _ in grids] == [8, 16, 24]


def test_objects_look_alikes_and_curves_of_a_look(client: TestClient) -> None:
    found = look(client, sample="shapes")
    count = found["grid"][0] * found["grid"][1]
    objects = client.get(f"/api/look/{found['id']}/objects", params={"layer": 4}).json()
    assert len(objects["labels"]) == count
    assert len(objects["areas"]) == max(objects["labels"])
    similar = client.get(f"/api/look/{found['id']}/similar", params={"layer": 4, "patch": 7}).json()["values"]
    assert len(similar) == count
    assert similar[7] == pytest.approx(1, abs=1e-3)
    assert max(map(abs, similar)) <= 1.001
    curves = client.get(f"/api/look/{found['id']}/curves").json()
    assert len(curves["model"]["subspace_rate"]) == found["layers"]
    assert all(0 <= share <= 1 for share in curves["model"]["nonzero"])
    assert curves["untrained"] is None, "random weights are their own control"


def test_parts_are_switched_off_by_the_names_of_edit(client: TestClient, catalogue: Catalogue) -> None:
    import torch

    from unrolled import edit
    from unrolled.instruments.edits import project_out, subspace, zero

    answer = look(client, sample="shapes")
    assert {"block03/attn", "block03/attn/head2", "block03/subspace0"} <= set(answer["switches"])
    assert not [name for name in answer["switches"] if "atom" in name or name.endswith("ista")]

    def without(*off: str) -> dict[str, Any]:
        reply = client.post(f"/api/look/{answer['id']}/without", content=json.dumps(off))
        assert reply.status_code == 200, reply.text
        result: dict[str, Any] = reply.json()
        return result

    before = {row["name"]: row["probability"] for row in answer["prediction"]["top"]}
    whole = {row["name"]: row for row in without()["classes"]}
    assert all(whole[name]["before"] == whole[name]["after"] == share for name, share in before.items())
    edited = without("block03/attn/head2", "block03/subspace0", "block03/subspace1")
    assert any(row["before"] != row["after"] for row in edited["classes"])
    network = catalogue.open(CRATE).network
    joint = torch.cat([subspace(network, "block03", head) for head in (0, 1)], -1)
    pixels = prepared(catalogue.open(CRATE), 1).tensor(sample("shapes"))
    with torch.no_grad(), edit(network, {"block03/attn/head2": zero, "block02": project_out(joint)}):
        shares = network(pixels)[0].double().softmax(-1)
    for row in edited["classes"]:
        assert row["after"] == pytest.approx(float(shares[int(row["name"].split()[1])]), abs=1e-4)
    assert client.get(f"/api/look/{answer['id']}/curves").status_code == 200, "no edit stays in force"
    for bad in (b'["block99/attn"]', b'["block*"]', b'"attn"', b"[1]", b"{", b'["block03/attn", "block03/attn"]'):
        refused = client.post(f"/api/look/{answer['id']}/without", content=bad)
        assert refused.status_code == 422, bad
        assert refused.json()["error"].startswith("off")


def test_what_was_sent_can_be_asked_for_again(client: TestClient) -> None:
    first = look(client, encoded(photo()))
    again = look(client, upload=first["upload"], detail=2)
    assert again["size"] == first["size"]
    assert again["upload"] == first["upload"]
    assert look(client, sample="three")["upload"] is None
    for number in range(9):
        look(client, encoded(photo(8 + number, 8)))
    answer = client.post("/api/look", params={"model": CRATE, "upload": first["upload"]})
    assert answer.status_code == 410
    assert "no longer in memory" in answer.json()["error"]


def test_only_answers_that_need_models_wait_for_the_start(catalogue: Catalogue) -> None:
    startup = Startup()
    with TestClient(create_app(catalogue, startup=startup), base_url=LOCAL) as client, ThreadPoolExecutor(1) as pool:
        with suppress(RuntimeError), startup.running():
            startup.step("importing torch and timm")
            assert client.get("/").status_code == 200
            assert client.get("/api/start").json()["models"]
            assert client.get("/api/startup").json()["step"] == "importing torch and timm"
            waiting = pool.submit(look, client, sample="three")
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            raise RuntimeError  # a start that fails keeps nobody waiting either
        assert waiting.result(60)["grid"] == [8, 8]
        assert client.get("/api/startup").json() == {"step": None, "seconds": 0.0}


def test_neighbours_with_cosines_near_1_are_told_apart(catalogue: Catalogue) -> None:
    import torch

    digits = ImageSet.digits()
    near = Neighbours(lambda: ImageSet("forty digits", digits.images[:40], digits.names[:40]))
    features = torch.ones(40, 8) + 1e-3 * torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    near._features[CRATE] = {"block00": features}
    cosines = [row["similarity"] for row in near.of(catalogue.open(CRATE), 0, 0)]
    assert min(cosines) > 0.99999
    assert len(set(cosines)) == len(cosines)
    assert cosines == sorted(cosines, reverse=True)


def test_models_that_lack_something_say_so(client: TestClient) -> None:
    tost = look(client, model="given-tost_nano_patch4_32", sample="flower")
    assert tost["attention"] is None
    assert "no attention map" in tost["attention_note"]
    assert tost["colours"]
    masked = look(client, model="given-crate_mae_nano_patch4_32", sample="flower")
    assert masked["prediction"] is None
    grey = look(client, model="given-crate_nano_patch2_8", sample="three")
    assert grey["grid"] == [4, 4]
    answer = client.post("/api/look", params={"model": "given-timm:resnet18", "sample": "flower"})
    assert answer.status_code == 422
    assert "no transformer blocks" in answer.json()["error"]


def _exif_turned() -> bytes:
    record = Image.Exif()
    record[0x0112] = 6  # turned by a quarter
    return encoded(photo(64, 32), "JPEG", exif=record.tobytes())


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encoded(photo(), "JPEG"), [48, 32]),
        (encoded(photo(), "WEBP"), [48, 32]),
        (_exif_turned(), [32, 64]),
        (encoded(photo(mode="RGBA")), [48, 32]),
        (encoded(photo(mode="P")), [48, 32]),
        (encoded(photo(mode="CMYK"), "JPEG"), [48, 32]),
        (encoded(photo(mode="1")), [48, 32]),
        (encoded(Image.fromarray((np.arange(1024).reshape(32, 32) * 64).astype(np.uint16))), [32, 32]),
        (encoded(photo(), "GIF", save_all=True, append_images=[photo(48, 32, "L").convert("RGB")]), [48, 32]),
        (encoded(photo(1, 1)), [1, 1]),
        (encoded(photo(400, 2)), [400, 2]),
    ],
    ids=["jpeg", "webp", "exif", "alpha", "palette", "cmyk", "bilevel", "16-bit", "animated", "tiny", "thin"],
)
def test_pictures_of_every_kind_are_taken(client: TestClient, data: bytes, size: list[int]) -> None:
    assert look(client, data)["size"] == size


def _bomb(side: int) -> bytes:
    """A PNG whose header promises a square of so many pixels a side."""
    data = bytearray(encoded(photo(8, 8)))
    data[16:24] = side.to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello", "not a picture"),
        (encoded(photo())[:200], "cannot be decoded"),
        (_bomb(60_000), "the picture: has too many pixels; at most 50,000,000 are decoded"),
        (_bomb(16_000), "the picture: has too many pixels; at most 50,000,000 are decoded"),
        (_bomb(8_000), "the picture: has 8,000 x 8,000 pixels; at most 50,000,000 are decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"%PDF-1.7", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture"),
    ],
    ids=["empty", "text", "cut", "bomb", "256-megapixels", "64-megapixels", "svg", "pdf", "postscript"],
)
def test_what_is_no_picture_is_refused_in_words(client: TestClient, data: bytes, said: str) -> None:
    answer = client.post("/api/look", params={"model": CRATE}, content=data)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert said in error
    assert "Traceback" not in error
    assert str(Path(__file__).parents[2]) not in error


def test_uploads_are_limited_also_when_they_hide_their_size(client: TestClient) -> None:
    answer = client.post("/api/look", params={"model": CRATE}, content=b"x" * (MAX_UPLOAD + 1))
    assert answer.status_code == 413
    assert "10 MB" in answer.json()["error"]
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield b"x" * 2**20

    answer = client.post("/api/look", params={"model": CRATE}, content=chunks())
    assert answer.status_code == 413


def test_nothing_is_written(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    look(client, encoded(photo(600, 400), "PNG"))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_one_colour_has_no_objects(client: TestClient) -> None:
    found = look(client, encoded(Image.new("RGB", (40, 40), "teal")))
    assert found["blank"] is True
    assert found["attention"] is None
    objects = client.get(f"/api/look/{found['id']}/objects", params={"layer": 0}).json()
    assert objects["areas"] == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/look?sample=flower", "model"),
        ("/api/look?sample=flower&model=os:system", "not on the list"),
        ("/api/look?sample=flower&model=local:/etc", "not on the list"),
        (f"/api/look?sample=/etc/passwd&model={CRATE}", "sample"),
        (f"/api/look?sample=flower&model={CRATE}&detail=99", "detail"),
        (f"/api/look?sample=flower&model={CRATE}&detail=two", "detail"),
        ("/api/look?sample=flower&model=random-crate_tiny_patch16_224&detail=3", "patches"),
    ],
)
def test_bad_requests_name_the_entry(client: TestClient, path: str, said: str) -> None:
    answer = client.post(path)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_bad_requests_about_a_look(client: TestClient) -> None:
    name = look(client, sample="shapes")["id"]
    for path in (
        *(f"objects?layer={layer}" for layer in ("6", "-1", "--5", "x", "1&tau=2", "1&tau=nan")),
        *(f"similar?layer={asked}" for asked in ("0&patch=99999", "0&patch=-1", "0")),
    ):
        refused = client.get(f"/api/look/{name}/{path}")
        assert refused.status_code == 422, path
        assert refused.json()["error"].startswith(("layer", "patch", "tau")), "the entry is named"
    answer = client.get("/api/look/forgotten/objects?layer=0")
    assert answer.status_code == 410
    assert "no longer in memory" in answer.json()["error"]
    assert client.get("/api/nothing").status_code == 404
    assert client.get("/api/look").status_code == 405


def test_old_pictures_are_forgotten(client: TestClient) -> None:
    first = look(client, sample="three")["id"]
    for _ in range(12):
        look(client, sample="three")
    assert client.get(f"/api/look/{first}/objects?layer=0").status_code == 410


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8765"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "192.168.1.2:8765"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=lambda headers: "-".join(f"{k}={v}" for k, v in headers.items()),
)
def test_other_sites_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/api/start", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765", "LOCALHOST"])
def test_this_machine_is_served(client: TestClient, host: str) -> None:
    headers = {"Host": host, "Sec-Fetch-Site": "same-origin", "Origin": f"http://{host}"}
    assert client.get("/api/start", headers=headers).status_code == 200


def test_a_fault_of_ours_is_one_line(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    from unrolled.explorer import app

    def broken(*_: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(app, "look_at", broken)
    with TestClient(create_app(catalogue), base_url=LOCAL, raise_server_exceptions=False) as client:
        answer = client.post("/api/look", params={"model": CRATE, "sample": "three"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "RuntimeError" in answer.json()["error"]


def test_worlds_over_http(client: TestClient) -> None:
    found = client.post("/api/world", content=json.dumps({"features": 2, "layers": 5})).json()
    assert len(found["layers"]) == 6
    for bad in (b"", b"[]", b"{", b'{"features": 99}', b'{"noise": "much"}', b'{"shape": 1}', b'{"points": [[1]]}',
                b'{"points": 3}', b'{"layers": true}', b'{"noise": NaN}', b"[" * 5000):  # fmt: skip
        answer = client.post("/api/world", content=bad)
        assert answer.status_code == 422, bad
        assert answer.json()["error"]
    assert client.post("/api/world", content=b" " * 70_000).status_code == 413


def test_neighbours_side_by_side(client: TestClient) -> None:
    found = client.post("/api/agreement", params={"a": CRATE, "b": VIT}).json()
    assert np.array(found["scores"]).shape == (6, 6)
    assert 0 <= found["chance"] < found["score"] <= 1
    assert found["p_value"] < 0.05, "even random networks keep the neighbours that pixels have"
    best = found["best"]
    asked = {"a": CRATE, "b": VIT, "layer_a": best[0], "layer_b": best[1], "image": 3}
    near = client.get("/api/neighbours", params=asked).json()
    assert len(near["a"]) == len(near["b"]) == found["k"]
    assert 3 not in [row["image"] for row in near["a"]]
    assert set(near["shared"]) == {r["image"] for r in near["a"]} & {r["image"] for r in near["b"]}
    same = client.get("/api/neighbours", params={**asked, "b": CRATE, "layer_b": best[0]}).json()
    assert len(same["shared"]) == found["k"]
    assert client.get("/api/set/3").headers["content-type"] == "image/png"
    for bad in ({"image": 40}, {"image": -1}, {"layer_a": 9}, {"a": "nobody"}):
        assert client.get("/api/neighbours", params={**asked, **bad}).status_code == 422, bad
    assert client.get("/api/set/400").status_code == 422


def test_a_taken_port_is_said_before_models_load() -> None:
    from unrolled.explorer.server import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port}: is taken"):
            listen("127.0.0.1", port)
    free = listen("127.0.0.1", 0)
    assert free.getsockname()[0] == "127.0.0.1"
    free.close()
