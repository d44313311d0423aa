"""What a teacher adds to training: the loss it stands for, at the same places, and nothing that is saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_parallel import assert_same_to_rounding, run_processes, settings
from torch import Tensor
from torch.nn import functional as F
from train_helpers import EVERYTHING, TINY, assert_resumes_after_a_crash

from unrolled import alignment
from unrolled.data import model_input, synthetic_images
from unrolled.errors import MissingData, UnsafeFile
from unrolled.instruments.trace import trace
from unrolled.models import create_model
from unrolled.train import TrainConfig, fit, load_config, save_config
from unrolled.train.checkpoint import checkpoints, load_checkpoint
from unrolled.train.run import Splits
from unrolled.train.teacher import Teacher, divergence
from unrolled.trust import command_line

Make = Callable[..., TrainConfig]
NETWORK = "train_helpers:small_network"
NUMBERS = [str(number) for number in range(4)]


def saved(folder: Path, *, classes: list[str] | None = None, seed: int = 3, **arguments: Any) -> str:
    """A small CRATE in a folder, with the names of its classes."""
    torch.manual_seed(seed)
    made = {"depth": 3, "embed_dim": 12, "num_heads": 3, "in_chans": 1, "num_classes": 4, **arguments}
    model: Any = create_model("crate_nano_patch2_8", **made)
    model.save_pretrained(folder, model_config={} if classes is None else {"label_names": classes})
    return str(folder)


@pytest.fixture
def crate(tmp_path: Path) -> str:
    return saved(tmp_path / "teacher")


def met(spec: str, config: TrainConfig, splits: Splits) -> tuple[Teacher, torch.nn.Module]:
    torch.manual_seed(0)
    model = create_model(config.model, **{"num_classes": 4, "in_chans": 1, **TINY, **config.model_args})
    teacher = Teacher(spec)
    teacher.meet(model, config, splits.train)
    return teacher, model


def images(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("loss", ["cosine", "pooled_cosine", "cka", "procrustes", "rsa", "soft_knn"])
def test_the_term_is_the_loss_of_this_layer_and_the_teachers_last(
    config: Make, splits: Splits, crate: str, loss: Any
) -> None:
    asked = config(teacher=crate, align_weight=1.0, align_layer=-2, align_loss=loss)
    teacher, model = met(crate, asked, splits)
    with trace(model, grad=True) as ours, trace(teacher.module) as theirs:
        model(images())
        teacher.module(images())
    x, y = (traced[name][:, 1:] for traced, name in ((ours, "block00"), (theirs, "block02")))
    assert teacher.layer == "block00"
    measured = teacher.misalignment(ours["block00"], teacher(images()), teacher.projector)
    if loss == "cosine":
        assert teacher.projector is not None
        expected = 1 - F.cosine_similarity(teacher.projector(x), y, dim=-1).mean()
    elif loss == "pooled_cosine":
        assert teacher.projector is not None
        expected = 1 - F.cosine_similarity(teacher.projector(x.mean(1)), y.mean(1), dim=-1).mean()
    else:
        assert teacher.projector is None
        expected = getattr(alignment, f"{loss}_loss")(x.mean(1), y.mean(1))
    torch.testing.assert_close(measured, expected)
    measured.backward()
    assert next(model.parameters()).grad is not None
    assert all(parameter.grad is None for parameter in teacher.module.parameters())


def test_the_divergence_is_hintons() -> None:
    ours, theirs = (torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    p, q = (torch.softmax(each / 3, -1) for each in (theirs, ours))
    torch.testing.assert_close(divergence(ours, theirs, 3.0).double(), 9 * (p * (p / q).log()).sum(-1).mean())
    assert float(divergence(ours, ours, 3.0)) == pytest.approx(0, abs=1e-6)


def test_the_teacher_sees_the_same_view_as_it_expects_it(config: Make, splits: Splits) -> None:
    """Grey, 8 pixels, normalised for the model; the teacher gets colours, 16 pixels and its own mean."""
    teacher, model = met(NETWORK, config(teacher=NETWORK, align_weight=1.0), splits)
    shown: list[Tensor] = []
    teacher.module.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    pixels = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(model_input(model)[key]) for key in ("mean", "std"))
    assert len(mean) == 1
    teacher((pixels - mean) / std)
    expected = F.interpolate(pixels.expand(-1, 3, -1, -1), (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    expected = (expected - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    torch.testing.assert_close(shown[0], expected, rtol=1e-3, atol=1e-3)


def test_a_map_of_another_size_teaches_patch_by_patch(config: Make, splits: Splits) -> None:
    teacher, model = met(NETWORK, config(teacher=NETWORK, align_weight=1.0, align_layer=0), splits)
    assert teacher.words.startswith(f"{NETWORK} (weights {teacher.digest}); its 1 for block00 by cosine")
    with trace(model, patterns="block00") as traced:
        model(images())
    answer = teacher(images())
    assert answer.target is not None
    assert answer.target.shape == (5, 16, 6)  # its map is 7 x 7, the model's patches are 4 x 4
    assert teacher.misalignment(traced["block00"], answer, teacher.projector).isfinite()


@pytest.mark.parametrize("rate", [0.5, 0.75])
def test_patches_that_are_dropped_in_training_are_not_compared_one_by_one(
    config: Make, splits: Splits, crate: str, rate: float
) -> None:
    asked: dict[str, Any] = {"model": "crate_nano_patch2_8", "model_args": {**TINY, "patch_drop_rate": rate}}
    asked |= {"teacher": crate, "align_weight": 1.0, "max_steps": 1}
    with pytest.raises(ValueError, match=r"'cosine' compares .*crate_nano_patch2_8.* drops .*patch_drop_rate"):
        fit(config(**asked), data=splits)
    fit(config(**asked, align_loss="pooled_cosine"), data=splits)


@pytest.mark.parametrize("weight", ["align_weight", "distil_weight"])
def test_small_images_are_resized_for_the_teacher_whatever_the_normalisation(
    config: Make, splits: Splits, crate: str, weight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    real = Teacher._asked

    def listened(self: Teacher, images: Tensor) -> Any:
        handle = self.module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[1:])))
        try:
            return real(self, images)
        finally:
            handle.remove()

    monkeypatch.setattr(Teacher, "_asked", listened)
    asked: dict[str, Any] = {"model": "crate_nano_patch2_8", "teacher": crate, weight: 1.0}
    asked |= {"small_size": 4, "small_share": 0.5, "augment": True, "pad_crop": 1, "max_steps": 4}
    fit(config(**asked), data=splits)
    assert set(seen) == {(1, 8, 8)}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("cait_xxs24_224", {"depth": 2, "embed_dim": 48}),
        ("swin_tiny_patch4_window7_224", {"window_size": 4, "depths": (2,), "num_heads": (2,), "embed_dim": 16}),
    ],
)
def test_patches_are_found_in_any_network(config: Make, splits: Splits, crate: str, name: str, made: Any) -> None:
    """No class token where none has joined yet, and channels last."""
    asked = config(model=name, model_args={"img_size": 32, **made}, image_size=32, teacher=crate, align_weight=1.0)
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, in_chans=1, **asked.model_args)
    teacher = Teacher(crate)
    teacher.meet(model, asked, splits.train)
    views = F.interpolate(images(), (32, 32))
    with trace(model, patterns=teacher.layer) as traced:
        model(views)
    tokens = teacher._tokens(traced[teacher.layer])
    side = 2 if name.startswith("cait") else 8
    assert (tokens.prefix, tokens.grid, tokens.values.shape[1]) == (0, (side, side), side * side)
    assert teacher.misalignment(traced[teacher.layer], teacher(views), teacher.projector).isfinite()


def test_training_aligns_the_layer_and_leaves_teacher_and_saved_model_alone(
    config: Make, splits: Splits, crate: str, tmp_path: Path
) -> None:
    before = load_file(Path(crate) / "model.safetensors")
    plain = fit(config(model="crate_nano_patch2_8", log_every=1, out=tmp_path / "plain"), data=splits)
    asked = config(
        model="crate_nano_patch2_8", teacher=crate, align_weight=2.0, align_layer=1, distil_weight=0.5, log_every=1,
        out=tmp_path / "taught",
    )  # fmt: skip
    taught = fit(asked, data=splits)
    first, *_, last = [record for record in taught.metrics if record["split"] == "train"]
    assert last["misalignment"] < first["misalignment"] - 0.1
    begun = next(record for record in plain.metrics if record["split"] == "train")
    extra = 2.0 * first["misalignment"] + 0.5 * first["divergence"]
    assert first["loss"] - extra == pytest.approx(begun["loss"], rel=1e-5), "the model began as without a teacher"
    assert taught.model.state_dict().keys() == plain.model.state_dict().keys()
    names = [set(load_file(result.run_dir / "model" / "model.safetensors")) for result in (plain, taught)]
    assert names[0] == names[1]
    kept, scalars = load_checkpoint(checkpoints(asked.out / "checkpoints")[0])
    own = {name for name in kept if "projector" in name or "beside" in name}
    assert {name.split("/")[0] for name in own} == {"further", "optimizer"}
    assert not [name for name in kept.keys() - own if tuple(kept[name].shape) == (12, 12)], "nothing of the teacher"
    assert scalars["teacher"] == Teacher(crate).digest
    after = load_file(Path(crate) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_always_seen_in_one_view_is_asked_once(
    config: Make, splits: Splits, crate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were asked at every step, and after a resume to the same bits; never where views are drawn."""
    ends, asked = {}, Counter[str]()
    real = Teacher._asked
    for name, changes in (("once", {}), ("always", {}), ("drawn", {"augment": True, "pad_crop": 1})):

        def counted(self: Teacher, images: Tensor, name: str = name) -> Any:
            asked[name] += len(images)
            return real(self, images)

        monkeypatch.setattr(Teacher, "_asked", counted)
        if name == "always":
            monkeypatch.setattr("unrolled.train.teacher._MOST", 0)
        made = config(teacher=crate, align_weight=1.0, distil_weight=1.0, **changes, out=tmp_path / name)
        ends[name] = fit(made, data=splits).metrics[-1]["loss"]
        monkeypatch.undo()
    assert asked == {"once": 1 + 48, "always": 1 + 12 + 3 * 48, "drawn": 1 + 3 * 48}  # 1 to see what it says
    assert ends["once"] == pytest.approx(ends["always"], rel=1e-4)
    made = {"teacher": crate, "align_weight": 1.0, "distil_weight": 1.0, "checkpoint_every": 5}
    broken = config(**made, out=tmp_path / "broken", resume="auto")
    assert_resumes_after_a_crash(config(**made, out=tmp_path / "straight"), broken, 6, splits)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_crashed_run_resumes_to_the_same_bits(
    config: Make, splits: Splits, crate: str, tmp_path: Path, optimizer: str
) -> None:
    asked = {**EVERYTHING, "teacher": crate, "align_weight": 1.0, "distil_weight": 1.0, "optimizer": optimizer}
    straight = config(**asked, out=tmp_path / "straight")
    broken = config(**asked, out=tmp_path / "broken", resume="auto")
    assert_resumes_after_a_crash(straight, broken, 6, splits)


def test_a_run_goes_on_with_the_weights_it_learned_from(config: Make, splits: Splits, crate: str) -> None:
    asked = config(teacher=crate, distil_weight=1.0, max_steps=2, checkpoint_every=1)
    fit(asked, data=splits)
    moved = Path(crate).rename(Path(crate).with_name("moved"))
    asked = replace(asked, teacher=str(moved), resume="auto")
    assert fit(replace(asked, max_steps=3), data=splits).steps == 3
    saved(moved, seed=4)
    with pytest.raises(ValueError, match="learned from other weights of the teacher"):
        fit(replace(asked, max_steps=4), data=splits)


def test_logits_are_distilled_class_by_class(config: Make, splits: Splits, tmp_path: Path) -> None:
    splits.train.classes = list("abcd")
    spec = saved(tmp_path / "named", classes=list("dcba"))
    asked = config(teacher=spec, distil_weight=1.0)
    teacher, model = met(spec, asked, splits)
    torch.testing.assert_close(teacher(images()).logits, teacher.module(images()).flip(1))
    for classes in (list("wxyz"), [*"abcd", "e"]):
        splits.train.classes = classes
        with pytest.raises(ValueError, match=r"teacher=.* has 4 outputs \(.*, not .*distil_weight"):
            Teacher(spec).meet(model, asked, splits.train)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"align_weight": 1.0}, "align_weight: needs a model to learn from; give teacher"),
        ({"distil_weight": 1.0}, "distil_weight: needs a model to learn from; give teacher"),
        ({"teacher": NETWORK}, "teacher=.*teaches nothing; give align_weight or distil_weight"),
        ({"teacher": NETWORK, "align_weight": -1.0}, "align_weight=-1.0 must not be negative"),
        ({"teacher": NETWORK, "distil_weight": 1.0, "distil_temperature": 0.0}, "distil_temperature=0.0 must be pos"),
        ({"teacher": NETWORK, "align_weight": 1.0, "align_layer": 2}, r"align_layer=2: .* has 2 layers, 0 to 1"),
        ({"teacher": NETWORK, "align_weight": 1.0, "compile": True}, "align_weight: needs the layers' tokens"),
        ({"teacher": NETWORK, "align_weight": 1.0, "align_loss": "knn"}, "align_loss='knn' must be 'cosine'"),
        (
            {"teacher": NETWORK, "align_weight": 1.0, "align_loss": "rsa", "accumulate": 4},
            "align_loss='rsa' compares the images of a pass, here 3",
        ),
        ({"teacher": "crate_nano_patch4_3", "align_weight": 1.0}, "teacher.*crate_nano_patch4_32"),
        ({"teacher": "gpt_nano", "align_weight": 1.0}, "teacher"),
    ],
)
def test_what_cannot_be_is_said_by_its_flag(config: Make, splits: Splits, asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(config(**asked), data=splits)


def test_a_model_without_layers_is_not_aligned_and_missing_weights_are_said(
    config: Make, splits: Splits, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"align_weight: .* has no transformer layers"):
        fit(config(model=NETWORK, model_args={}, teacher=NETWORK, align_weight=1.0), data=splits)
    with pytest.raises(MissingData, match="teacher: there is no folder"):
        fit(config(teacher=str(tmp_path / "nowhere"), align_weight=1.0), data=splits)


def test_a_file_may_not_name_code_as_the_teacher(config: Make, tmp_path: Path) -> None:
    save_config(config(teacher=NETWORK, align_weight=1.0), tmp_path / "run.yaml")
    with command_line(["train", "--config", "run.yaml"]), pytest.raises(UnsafeFile, match="its teacher"):
        load_config(tmp_path / "run.yaml", TrainConfig)
    with command_line(["train", "--config", "run.yaml", "--teacher", NETWORK]):
        assert load_config(tmp_path / "run.yaml", TrainConfig).teacher == NETWORK


def test_a_masked_autoencoder_teaches_by_its_encoder(config: Make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = create_model("crate_mae_nano_patch4_32", depth=2, embed_dim=16, num_heads=2, decoder_depth=1)
    model.save_pretrained(tmp_path / "mae")
    train = synthetic_images(24, size=32, classes=4, channels=3, seed=0)
    asked = config(
        model="crate_nano_patch4_32", teacher=str(tmp_path / "mae"), align_weight=1.0, max_steps=1, log_every=1
    )
    (record,) = [each for each in fit(asked, data=Splits(train=train)).metrics if each["split"] == "train"]
    assert 0 < record["misalignment"] < 2


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one_does(tmp_path: Path) -> None:
    spec = saved(tmp_path / "teacher", num_classes=10)
    asked: dict[str, Any] = {"teacher": spec, "align_weight": 1.0, "distil_weight": 0.5}
    one, two = settings(tmp_path / "one", **asked), settings(tmp_path / "two", **asked, devices=2)
    fit(one)
    run_processes(two, tmp_path)
    assert json.loads((two.out / "env.json").read_text())["processes"] == 2
    assert_same_to_rounding(one.out, two.out)
