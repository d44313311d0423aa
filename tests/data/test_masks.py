from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from unrolled.data.masks import open_masks
from unrolled.data.sources import BadImage
from unrolled.errors import CorruptFile, MissingData, UnsafeFile

SIZE = (12, 16)
LABELS = np.zeros(SIZE, np.uint8)
LABELS[2:6, 3:9], LABELS[7:11, 10:15] = 1, 2


def save(pixels: np.ndarray, path: Path, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette([v for k in range(256) for v in (k, 255 - k, k)])
    image.save(path)


def photo(path: Path) -> None:
    save(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8), path)


def write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


CATEGORIES = [{"id": 7, "name": "cat", "isthing": 1}, {"id": 90, "name": "grass", "isthing": 0}]


def coco_panoptic(root: Path) -> Path:
    photo(root / "val2017" / "a.jpg")
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[LABELS == 1] = (5, 1, 0)
    ids[LABELS == 2] = (0, 0, 1)
    save(ids, root / "annotations" / "panoptic_val2017" / "a.png")
    segments = [{"id": 261, "category_id": 7, "iscrowd": 1}, {"id": 65536, "category_id": 90}]
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": CATEGORIES,
    }
    write(root / "annotations" / "panoptic_val2017.json", data)
    return root


def test_coco_panoptic(tmp_path: Path) -> None:
    for name in ("coco", "coco-panoptic"):
        source = open_masks(name, data_dir=coco_panoptic(tmp_path))
        scene = source.load(0)
        assert source.classes == ["cat", "grass"]
        assert [(r.category, r.thing, r.crowd) for r in scene.regions] == [("cat", True, True), ("grass", False, False)]
        assert np.array_equal(scene.foreground(), LABELS == 1)
        assert scene.ignore is not None
        assert np.array_equal(scene.ignore, LABELS == 0)
        assert list(scene.classes()) == ["cat"]
        assert list(scene.classes(things=False)) == ["cat", "grass"]
        assert scene.instances()[0].shape == (1, *SIZE)
        assert source.name(0).endswith("a.jpg")


def test_coco_instances(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    photo(tmp_path / "val2017" / "a.jpg")
    photo(tmp_path / "val2017" / "b.jpg")
    runs = np.flatnonzero(np.diff(np.concatenate([[0], (LABELS == 2).T.ravel(), [0]]).astype(int)))
    counts = np.diff(np.concatenate([[0], runs, [LABELS.size]])).tolist()
    annotations = [
        {"image_id": 1, "category_id": 7, "segmentation": [[3, 2, 9, 2, 9, 6, 3, 6]], "iscrowd": 0},
        {"image_id": 1, "category_id": 7, "segmentation": {"counts": counts, "size": list(SIZE)}, "iscrowd": 1},
    ]
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    data = {"images": images, "annotations": annotations, "categories": CATEGORIES[:1]}
    write(tmp_path / "annotations" / "instances_val2017.json", data)
    source = open_masks("coco", data_dir=tmp_path)
    masks, crowd = source.load(0).instances()
    assert np.array_equal(masks[0], LABELS == 1)
    assert np.array_equal(masks[1], LABELS == 2)
    assert crowd == [False, True]
    assert len(source) == 2
    assert source.load(1).instances()[0].shape == (0, *SIZE)


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    photo(root / "JPEGImages" / "x.jpg")
    classes = np.where(LABELS == 1, 8, np.where(LABELS == 2, 15, 0)).astype(np.uint8)
    classes[0] = 255
    save(classes, root / "SegmentationClass" / "x.png", palette=True)
    save(np.where(classes == 255, 255, LABELS).astype(np.uint8), root / "SegmentationObject" / "x.png", palette=True)
    write(root / "ImageSets" / "Segmentation" / "val.txt", "x\n")
    scene = open_masks("voc", data_dir=tmp_path).load(0)
    assert [r.category for r in scene.regions] == ["cat", "person"]
    assert np.array_equal(scene.regions[1].mask, LABELS == 2)
    assert scene.ignore is not None
    assert scene.ignore.sum() == SIZE[1]


def test_bsds(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "val" / "1.jpg")
    (tmp_path / "groundTruth" / "val").mkdir(parents=True)
    people = np.empty((1, 2), object)
    for i in range(2):
        people[0, i] = {"Segmentation": LABELS.astype(np.uint16) + i, "Boundaries": LABELS}
    savemat(tmp_path / "groundTruth" / "val" / "1.mat", {"groundTruth": people})
    scene = open_masks("bsds", data_dir=tmp_path).load(0)
    assert len(scene.segmentations) == 2
    assert np.array_equal(scene.segmentations[1], LABELS + 1)
    path = tmp_path / "groundTruth" / "val" / "1.mat"
    savemat(path, {"groundTruth": people}, do_compression=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    with pytest.raises(BadImage, match=r"1\.mat"):
        open_masks("bsds", data_dir=tmp_path).load(0)
    path.write_bytes(b"nonsense")
    with pytest.raises(BadImage, match=r"1\.mat"):
        open_masks("bsds", data_dir=tmp_path).load(0)


def test_ade20k(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "validation" / "s.jpg")
    save(LABELS, tmp_path / "annotations" / "validation" / "s.png")
    rows = ["Idx Ratio Train Val Stuff Name", "1 .1 1 1 1 wall", "2 .1 1 1 0 bed,cot"]
    write(tmp_path / "objectInfo150.txt", "\n".join(rows).replace(" ", "\t"))
    scene = open_masks("ade20k", data_dir=tmp_path).load(0)
    assert [(r.category, r.thing) for r in scene.regions] == [("wall", False), ("bed", True)]
    assert np.array_equal(scene.foreground(), LABELS == 2)
    save(LABELS * 2, tmp_path / "annotations" / "validation" / "s.png")
    with pytest.raises(BadImage, match="class 4 of 2"):
        open_masks("ade20k", data_dir=tmp_path).load(0)
    for damage in (b"\xff\xfe", b"x" * 200_000):
        (tmp_path / "objectInfo150.txt").write_bytes(b"Stuff\tName\n1\t" + damage + b"\n")
        with pytest.raises(CorruptFile, match="objectInfo150"):
            open_masks("ade20k", data_dir=tmp_path)


@pytest.mark.parametrize("layout", ["folders", "beside"])
def test_folder_of_masks(tmp_path: Path, layout: str) -> None:
    image, mask = ("images/a.jpg", "masks/a.png") if layout == "folders" else ("a.jpg", "a_mask.png")
    photo(tmp_path / image)
    save(LABELS, tmp_path / mask)
    scene = open_masks("masks", data_dir=tmp_path).load(0)
    assert [r.category for r in scene.regions] == ["1", "2"]
    save((LABELS > 0).astype(np.uint8) * 255, tmp_path / mask)
    assert [r.category for r in open_masks("masks", data_dir=tmp_path).load(0).regions] == ["object"]


def test_a_mask_of_other_size_is_named_when_it_is_met(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    save(LABELS[:5], tmp_path / "masks" / "a.png")
    with pytest.raises(BadImage, match="16 x 5 pixels, the image 16 x 12"):
        open_masks("masks", data_dir=tmp_path).load(0)
    save(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8), tmp_path / "masks" / "a.png")
    with pytest.raises(BadImage, match="colour"):
        open_masks("masks", data_dir=tmp_path).load(0)


def test_annotated_images_that_are_missing(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    save(LABELS, tmp_path / "masks" / "a.png")
    save(LABELS, tmp_path / "masks" / "b.png")
    with pytest.raises(MissingData, match="1 of 2"):
        open_masks("masks", data_dir=tmp_path)
    source = open_masks("masks", data_dir=tmp_path, missing="skip")
    assert len(source) == 1
    assert source.missing == ("b.jpg",)
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(MissingData, match="2 of 2"):
        open_masks("masks", data_dir=tmp_path, missing="skip")


def test_damaged_annotations(tmp_path: Path) -> None:
    root = coco_panoptic(tmp_path)
    (root / "annotations" / "panoptic_val2017" / "a.png").unlink()
    with pytest.raises(BadImage, match=r"a\.png does not exist"):
        open_masks("coco", data_dir=root).load(0)
    write(root / "annotations" / "panoptic_val2017.json", "{")
    with pytest.raises(CorruptFile, match="JSON"):
        open_masks("coco-panoptic", data_dir=root)
    write(root / "annotations" / "panoptic_val2017.json", {"images": []})
    with pytest.raises(CorruptFile, match="annotations"):
        open_masks("coco-panoptic", data_dir=root)


def test_any_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    save(LABELS, tmp_path / "masks" / "a.png")
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    for mode in ("L", "RGBA", "CMYK", "1", "P"):
        for old in (tmp_path / "images").glob("*"):
            old.unlink()
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(tmp_path / "images" / f"a.{'jpg' if mode == 'CMYK' else 'png'}")
        assert open_masks("masks", data_dir=tmp_path).load(0).image.mode == "RGB"
    for old in (tmp_path / "images").glob("*"):
        old.unlink()
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(tmp_path / "images" / "a.png")
    assert np.asarray(open_masks("masks", data_dir=tmp_path).load(0).image).max() == 155


def packed(path: Path, **changes: Any) -> Path:
    def encode(pixels: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()

    photos = [encode(np.full((*SIZE, 3), v, np.uint8)) for v in (10, 20)]
    masks = [encode(LABELS), encode(LABELS)]
    arrays: dict[str, Any] = {
        "payload": np.frombuffer(b"".join(photos), np.uint8),
        "offsets": np.cumsum([0, *map(len, photos)]).astype(np.uint32),
        "mask_payload": np.frombuffer(b"".join(masks), np.uint8),
        "mask_offsets": np.cumsum([0, *map(len, masks)]).astype(np.uint32),
        "segments": np.array([[0, 1, 7, 1, 0, 24], [1, 1, 90, 0, 0, 24], [1, 2, 7, 1, 1, 20], [1, 3, 7, 1, 0, 1]]),
        "is_val": np.array([False, True]),
        "category_ids": np.array([7, 90]),
        "category_names": np.array(["cat", "grass"]),
        "mask_image": np.array([1, 1]),
    }
    np.savez(path, **(arrays | changes))
    return path


def test_packed_files(tmp_path: Path) -> None:
    path = packed(tmp_path / "coco_panoptic_2.npz")
    assert [len(open_masks("coco", data_dir=tmp_path, split=s)) for s in ("train", "val", "all")] == [1, 1, 2]
    source = open_masks("coco", data_dir=path)
    scene = source.load(0)
    assert source.name(0) == f"{path}[1]"
    assert np.asarray(scene.image)[0, 0, 0] == 20
    assert [(r.category, r.thing, r.crowd) for r in scene.regions] == [("grass", False, False), ("cat", True, True)]
    assert np.array_equal(scene.foreground(), LABELS == 2)
    people = open_masks("bsds", data_dir=path)
    assert [len(people.load(i).segmentations) for i in range(2)] == [0, 2]
    with pytest.raises(ValueError, match="split"):
        open_masks("coco", data_dir=path, split="test")


def test_damaged_packed_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", payload=0, offsets=0, mask_payload=0, mask_offsets=0)
    with pytest.raises(CorruptFile, match="lacks segments"):
        open_masks("coco", data_dir=tmp_path / "a.npz")
    with pytest.raises(CorruptFile, match="mask_offsets"):
        open_masks("coco", data_dir=packed(tmp_path / "b.npz", mask_offsets=np.array([0, 10**6])))
    with pytest.raises(UnsafeFile):
        open_masks("coco", data_dir=packed(tmp_path / "c.npz", segments=np.array([{}], object)))
    whole = packed(tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFile):
        open_masks("coco", data_dir=tmp_path / "d.npz")
    with pytest.raises(CorruptFile, match="as many category_ids as category_names"):
        open_masks("coco", data_dir=packed(tmp_path / "e.npz", category_ids=np.array([7])))
    for name in ("is_val", "mask_offsets"):
        with np.load(packed(tmp_path / "f.npz")) as stored:
            shorter = stored[name][:-1]
        with pytest.raises(CorruptFile, match="are not of as many photos"):
            open_masks("coco", data_dir=packed(tmp_path / "f.npz", **{name: shorter}))


def test_resizing_keeps_annotations_on_the_image(tmp_path: Path) -> None:
    scene = open_masks("coco", data_dir=packed(tmp_path / "x.npz")).load(0).resized((24, 32))
    assert scene.size == (24, 32)
    assert np.array_equal(scene.regions[1].mask, (LABELS == 2).repeat(2, 0).repeat(2, 1))
    assert scene.ignore is not None
    assert scene.ignore.shape == (24, 32)


def test_shared_photos(shared: Path) -> None:
    if not (shared / "data" / "coco-panoptic-200").is_dir():
        pytest.skip("no shared data")
    source = open_masks("coco", data_dir=shared / "data" / "coco-panoptic-200")
    assert len(source) == 100
    assert len(source.classes) == 133
    scene = source.load(50)
    assert all(r.mask.shape == scene.size for r in scene.regions)
    assert 0 < scene.foreground().mean() < 1
    bsds = open_masks("bsds", data_dir=shared / "data" / "bsds500-val")
    assert len(bsds) == 100
    assert len(bsds.load(0).segmentations) >= 5


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        open_masks("cityscapes", data_dir=tmp_path)
    with pytest.raises(ValueError, match="missing"):
        open_masks("masks", data_dir=tmp_path, missing="ignore")  # type: ignore[arg-type]
    with pytest.raises(MissingData):
        open_masks("voc", data_dir=tmp_path)
    with pytest.raises(MissingData):
        open_masks("masks", data_dir=tmp_path / "nowhere")
