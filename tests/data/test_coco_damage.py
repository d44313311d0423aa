"""COCO annotations that say less, more or other than they should: the image is named, or the file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unrolled.data.masks import MaskSource, open_masks
from unrolled.data.sources import BadImage
from unrolled.errors import CorruptFile

SQUARE = [[3, 2, 9, 2, 9, 6, 3, 6]]
GOOD = {"id": 5, "image_id": 1, "category_id": 7, "segmentation": SQUARE}


def coco(root: Path, annotations: list[Any], images: list[Any] | None = None, kind: str = "instances") -> MaskSource:
    pytest.importorskip("pycocotools")
    for name in ("a.png", "b.png"):
        (root / "val2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(root / "val2017" / name)
    (root / "annotations" / f"{kind}_val2017").mkdir(parents=True, exist_ok=True)
    data = {
        "images": images or [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat", "isthing": 1}],
    }
    (root / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(data))
    return open_masks(f"coco-{kind}", data_dir=root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation": [[3, 2, 9, 6]]}, "annotation 5 has a polygon of 4 numbers; three points"),
        ({"segmentation": [[3, 2, 9, 2, 9, 6, 3]]}, "annotation 5 has a polygon of 7 numbers"),
        ({"segmentation": [SQUARE[0], []]}, "annotation 5 has a polygon of 0 numbers"),
        ({"segmentation": []}, "annotation 5 has no segmentation"),
        ({"segmentation": None}, "annotation 5 has no segmentation"),
        ({"segmentation": ["x" * 8]}, "annotation 5 has a segmentation that cannot be read"),
        ({"segmentation": {"size": [12, 16]}}, "annotation 5 has a segmentation that cannot be read"),
        ({"segmentation": {"size": [12, 16], "counts": [5]}}, "annotation 5 has run lengths of 5 pixels for 192"),
        ({"segmentation": [[None, 2, 9, 2, 9, 6]]}, "annotation 5 has a polygon with a point that is no number"),
        ({"segmentation": [[1e300, 2, 9, 2, 9, 6]]}, "annotation 5 has a polygon with a point that is no number, or f"),
        ({"segmentation": {"size": [12, 16], "counts": [-5, 197]}}, "annotation 5 has a negative run length"),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, "instance mask has 4 x 4 pixels, the image 16 x 12"),
        ({"segmentation": 3}, "annotation 5 has a segmentation that cannot be read"),
        ({"category_id": 8}, "annotation 5 is of category 8, which the annotations do not describe"),
        ({"category_id": [7]}, r"annotation 5 is of category \[7\]"),
    ],
)
def test_a_bad_annotation_is_a_bad_image_and_the_others_go_on(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    source = coco(tmp_path, [{**GOOD, **changes}, {**GOOD, "id": 6, "image_id": 2}])
    with pytest.raises(BadImage, match=words):
        source.load(0)
    assert source.load(1).foreground().sum() == 24


def test_annotations_of_another_size_are_refused(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}, {"id": 2, "file_name": "b.png", "width": 16}]
    source = coco(tmp_path, [GOOD], images)
    with pytest.raises(BadImage, match="annotations are of 8 x 6 pixels, the file has 16 x 12"):
        source.load(0)
    assert source.load(1).regions == ()


def test_ids_are_the_same_as_text_and_as_numbers(tmp_path: Path) -> None:
    images = [{"id": "1", "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    source = coco(tmp_path, [GOOD, {**GOOD, "image_id": "2"}, {**GOOD, "image_id": 2, "category_id": "7"}], images)
    assert [len(source.load(index).regions) for index in range(2)] == [1, 2]
    exported = coco(tmp_path, [{**GOOD, "image_id": 1.0, "category_id": 7.0}, {**GOOD, "image_id": 2}])
    assert [len(exported.load(index).regions) for index in range(2)] == [1, 1]
    stray = coco(tmp_path, [GOOD, {**GOOD, "image_id": 3}])
    assert "(1 annotations are of images that instances_val2017.json does not list)" in stray.description


@pytest.mark.parametrize(
    ("annotations", "images", "words"),
    [
        ([{"id": 1}], None, "entry 0 of annotations lacks image_id"),
        (["x"], None, "entry 0 of annotations lacks image_id"),
        ([GOOD], [{"id": 1}], "entry 0 of images lacks file_name"),
        ([GOOD], [{"id": 1, "file_name": "a.png"}, {"id": "1", "file_name": "b.png"}], "several images have the id 1"),
    ],
)
def test_a_file_that_lacks_what_is_needed_is_named(
    tmp_path: Path, annotations: list[Any], images: list[Any] | None, words: str
) -> None:
    with pytest.raises(CorruptFile, match=rf"instances_val2017\.json: {words}"):
        coco(tmp_path, annotations, images)


def test_panoptic_segments_are_checked_too(tmp_path: Path) -> None:
    note = {"image_id": "1", "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 9}]}
    folder = tmp_path / "annotations" / "panoptic_val2017"
    source = coco(tmp_path, [note], kind="panoptic")
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(folder / "a.png")
    assert len(source) == 1
    with pytest.raises(BadImage, match="segment 1 is of category 9"):
        source.load(0)
    with pytest.raises(BadImage, match="no file_name or no segments_info"):
        coco(tmp_path, [{"image_id": 1}], kind="panoptic").load(0)
    with pytest.raises(BadImage, match="has 2 panoptic annotations"):
        coco(tmp_path, [note, note], kind="panoptic").load(0)


def test_panoptic_segments_are_the_pixels_of_their_id(tmp_path: Path) -> None:
    folder = tmp_path / "annotations" / "panoptic_val2017"
    colours = np.zeros((12, 16, 3), np.uint8)
    colours[:4, :, 0], colours[4:6, :, 0], colours[6:9, :, 1] = 1, 2, 1  # ids 1, 2 and 256

    def scene(*ids: Any) -> Any:
        segments = [{"id": number, "category_id": 7} for number in ids]
        source = coco(tmp_path, [{"image_id": 1, "file_name": "a.png", "segments_info": segments}], kind="panoptic")
        Image.fromarray(colours).save(folder / "a.png")
        return source.load(0)

    found = scene("1", 256.0)
    assert [int(region.mask.sum()) for region in found.regions] == [64, 48]
    assert np.array_equal(found.ignore[:, 0], [False] * 4 + [True] * 2 + [False] * 3 + [True] * 3)  # 2 has no label
    with pytest.raises(BadImage, match="its segment 9 has no pixels in the mask"):
        scene(1, 9)


def masks(root: Path, mask: np.ndarray) -> MaskSource:
    for folder, pixels in (("images", np.zeros((*mask.shape, 3), np.uint8)), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / "a.png")
    return open_masks("masks", data_dir=root)


def test_255_beside_other_values_is_void(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[0], mask[1] = 1, 255
    scene = masks(tmp_path, mask).load(0)
    assert [region.category for region in scene.regions] == ["1"]
    assert scene.ignore is not None
    assert np.array_equal(scene.ignore, mask == 255)
    alone = masks(tmp_path, np.where(mask == 1, 0, mask).astype(np.uint8)).load(0)
    assert [region.category for region in alone.regions] == ["object"]
    assert alone.ignore is None


def test_a_folder_of_masks_says_what_it_passes_over_and_refuses_two_of_a_name(tmp_path: Path) -> None:
    mask = np.ones((4, 6), np.uint8)
    masks(tmp_path, mask)
    for folder, name in (("images", "._a.png"), ("masks", "._a.png"), ("masks", "Thumbs.db")):
        (tmp_path / folder / name).write_bytes(b"\0\5\x16\7")
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "images" / "b.png")
    source = open_masks("masks", data_dir=tmp_path)
    assert len(source) == 1
    assert "(1 images without a mask are passed over, b first)" in source.description
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "images" / "a.bmp")
    with pytest.raises(ValueError, match=r"images .*a\.bmp and a\.png share a name"):
        open_masks("masks", data_dir=tmp_path)


@pytest.mark.parametrize(
    "nothing",
    [
        [[3, 2, 9, 2, 3, 2]],
        [[4, 4, 4, 4, 4, 4]],
        [[90, 90, 95, 90, 95, 95]],
        {"size": [12, 16], "counts": [192]},
    ],
    ids=["a line", "a point", "outside", "no pixel"],
)
def test_what_marks_no_pixel_is_no_region(tmp_path: Path, nothing: Any) -> None:
    source = coco(tmp_path, [{**GOOD, "segmentation": nothing}, {**GOOD, "id": 6}])
    assert [int(region.mask.sum()) for region in source.load(0).regions] == [24]
    assert source.load(1).regions == ()
