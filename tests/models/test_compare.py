"""Costs side by side: counts equal the published and hand-made ones, and a table says what they were measured on."""

import json

import pytest
import timm
import torch

from unrolled import cli
from unrolled.models import CRATE, create_model
from unrolled.models.compare import compare, count_flops, matched_width


@pytest.mark.parametrize(
    ("name", "published"),
    [("crate_base_patch16_224", 12.6e9), pytest.param("crate_large_patch16_224", 43.3e9, marks=pytest.mark.slow)],
)
def test_operations_of_the_published_form_are_the_published_count(name, published):
    """arXiv 2509.16875 counts the two products of ISTA, which train mode runs; folded, eval mode needs fewer."""
    with torch.device("meta"):
        model, images = create_model(name), torch.empty(1, 3, 224, 224)
        assert count_flops(model.train(), images) == pytest.approx(published, rel=0.02)


def test_operations_are_those_of_a_count_by_hand():
    d, n = 24, 17
    model = CRATE(image_size=16, patch_size=4, num_classes=5, dim=d, depth=3, heads=4).eval()
    stem, head = 16 * 48 * d, 5 * d
    layer = n * d * d * 2 + 2 * n * n * d + n * d * d  # projection and output, attention, folded ISTA
    assert count_flops(model, torch.randn(1, 3, 16, 16)) == 2 * (stem + 3 * layer + head)
    assert count_flops(model, torch.randn(2, 3, 16, 16)) == 2 * count_flops(model, torch.randn(1, 3, 16, 16))


def test_models_of_any_source_are_compared_and_faults_named():
    rows = compare(["crate_nano_patch2_8", "timm:vit_nano_patch2_8"], batch_size=2, rounds=1)
    assert [row.name for row in rows] == ["crate_nano_patch2_8", "timm:vit_nano_patch2_8"]
    assert rows[0].parameters == sum(p.numel() for p in create_model("crate_nano_patch2_8").parameters())
    assert rows[0].flops < rows[1].flops
    assert all(row.images_per_second > 0 and row.input_size == (1, 8, 8) for row in rows)
    assert compare(["crate_nano_patch4_32"], batch_size=1, rounds=1, img_size=16)[0].input_size == (3, 16, 16)
    for arguments, name in (
        ({"names": []}, "names"),
        ({"names": ["crate_nano_patch2_8"] * 2}, "more than once"),
        ({"names": ["crete_nano"]}, "crete_nano"),
        ({"names": ["crate_nano_patch2_8"], "batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=name):
            compare(**arguments)


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "tost_nano_patch4_32", "cbt_nano_patch4_32"])
@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_a_matched_baseline_costs_what_the_reference_does_and_its_neighbours_do_not(name, by):
    def cost(model):
        by_count = sum(parameter.numel() for parameter in model.parameters())
        return by_count if by == "parameters" else count_flops(model.eval(), torch.zeros(1, 3, 32, 32))

    size = {"num_classes": 5, "depth": 2}
    target = cost(create_model("crate_nano_patch4_32", **size))
    width = matched_width(name, "crate_nano_patch4_32", by=by, **size)
    off = [abs(cost(create_model(name, **size, embed_dim=width + step)) - target) for step in (-4, 0, 4)]
    assert off[1] == min(off)
    assert off[1] < 0.1 * target


def test_counting_leaves_the_model_as_it_was_and_takes_models_with_a_late_class_token():
    model = timm.create_model("cait_xxs24_224", depth=2, img_size=32, embed_dim=48)
    model.pos_embed.requires_grad_(False)
    assert count_flops(model.eval(), torch.zeros(1, 3, 32, 32)) > 0
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["pos_embed"]


def test_a_model_matched_with_itself_keeps_its_width_and_what_cannot_be_matched_is_named():
    assert matched_width("crate_mae_nano_patch4_32", "crate_mae_nano_patch4_32", by="flops", depth=2) == 96
    assert matched_width("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224", depth=2) == 192
    with pytest.raises(ValueError, match="timm:resnet18"):
        matched_width("timm:resnet18", "crate_nano_patch4_32")
    with pytest.raises(ValueError, match="by='flop'"):
        matched_width("vit_nano_patch4_32", "crate_nano_patch4_32", by="flop")


@pytest.mark.parametrize("name", ["timm:vit_relpos_small_patch16_224", "timm:vit_small_patch16_rope_224"])
@pytest.mark.parametrize("by", ["parameters", "flops"])
def test_models_with_tables_of_positions_and_rotations_are_matched_too(name, by):
    assert matched_width(name, name, by=by, depth=1) == 384


def test_the_roster_of_the_studies_is_as_wide_as_matching_says():
    from unrolled.studies.kinds import DEPTH, KINDS

    for kind, like, by in (
        ("vit-48", "crate", "parameters"),
        ("vit-52", "crate", "flops"),
        ("vit-mae", "mae", "parameters"),
    ):
        width = matched_width(KINDS[kind].model, KINDS[like].model, by=by, depth=DEPTH)
        assert KINDS[kind].options["embed_dim"] == width


def test_the_verb_tabulates_and_says_where_it_measured(capsys):
    names = ["crate_nano_patch2_8", "vit_nano_patch2_8"]
    assert cli.run(["list", "--compare", *names, "--batch-size", "2", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()[1:3]] == names
    assert "batch 2" in text
    assert "thread" in text
    assert cli.run(["list", "--compare", names[0], "--batch-size", "2", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["batch_size"], found["models"][0]["name"]) == ("cpu", 2, names[0])
    assert cli.run(["list", "crate*", "--compare", *names]) == 2
    assert "pattern" in capsys.readouterr().err


def test_the_verb_matches_the_first_and_says_how(capsys):
    names = ["crate_nano_patch2_8", "vit_nano_patch2_8"]
    arguments = ["list", "--batch-size", "2", "--device", "cpu", "--match", "parameters"]
    assert cli.run([*arguments, "--compare", *names]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()[1:]
    assert first.split()[1] == "96"
    assert int(second.split()[1]) < 96
    assert cli.run(arguments) == 2
    assert "--compare" in capsys.readouterr().err
