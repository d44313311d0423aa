from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from unrolled.data import synthetic_images
from unrolled.models import create_model
from unrolled.train import (
    FinetuneConfig,
    MaskedConfig,
    Splits,
    TrainConfig,
    fit,
    load_config,
    recipe,
    recipes,
    save_config,
)
from unrolled.train.config import RunConfig

SHALLOW = {"depth": 1, "embed_dim": 48, "num_heads": 4}


def kind(name: str) -> type[RunConfig]:
    if "mae" in name:
        return MaskedConfig
    return FinetuneConfig if "finetune" in name else TrainConfig


def test_the_published_recipes_ship():
    assert {"crate_imagenet_lion", "crate_cifar10_finetune", "digits", "cifar10_nano"} <= recipes().keys()


def test_the_imagenet_recipe_is_the_published_one():
    config = load_config(recipe("crate_imagenet_lion"), TrainConfig)
    assert (config.optimizer, config.lr, config.weight_decay, config.betas) == ("lion", 2.4e-4, 0.5, (0.9, 0.99))
    assert (config.batch_size, config.epochs, config.warmup_epochs, config.label_smoothing) == (2048, 150, 5, 0.1)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_first_steps_of_every_recipe_run(name, tmp_path):
    cls = kind(name)
    published = load_config(recipe(name), cls)
    small = {"batch_size": 4, "max_steps": 2, "workers": 0, "log_every": 1, "quiet": True}
    config = dataclasses.replace(
        published, **small, model_args=SHALLOW, accelerator="cpu", epochs=2, eval_every=1, out=tmp_path / "run"
    )
    side = 8 if config.data == "digits" else 32
    train, val, test = (
        synthetic_images(n, size=side, classes=10, channels=1 if side == 8 else 3, seed=n) for n in (40, 10, 10)
    )
    splits = Splits(train=train, val=val if config.val_fraction else None, test=test)
    if isinstance(config, FinetuneConfig):
        create_model(config.model, num_classes=10, **SHALLOW, img_size=160).save_pretrained(tmp_path / "weights")
        config = dataclasses.replace(config, weights=tmp_path / "weights")
    result = fit(config, data=splits)
    if isinstance(config, FinetuneConfig):
        assert "head.weight: not loaded: the classifier is new" in str(result.load_report)
        assert "pos_embed" in str(result.load_report)
    assert [record["step"] for record in result.metrics if record["split"] == "train"] == [1, 2]
    assert result.test is not None
    again = load_config(result.run_dir / "config.yaml", cls)
    assert again.lr == published.lr


@pytest.mark.parametrize("name", sorted(recipes()))
def test_recipes_survive_saving(name, tmp_path):
    config = load_config(recipe(name), kind(name))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", kind(name)) == config


def test_overrides_win_over_the_file_and_the_file_over_defaults():
    config = load_config(recipe("digits"), TrainConfig, lr="1e-4", out="elsewhere")
    assert (config.lr, config.out, config.augment) == (1e-4, Path("elsewhere"), False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", r"unknown key 'learning_rate'"),
        ("warmup_epoch: 1", r"did you mean 'warmup_epochs'"),
        ("lr: fast", r"lr: could not convert"),
        ("batch_size: 2.5", r"batch_size: expected int"),
        ("augment: 1", r"augment: expected bool"),
        ("precision: fp8", r"precision: 'fp8' is not one of fp32, bf16, fp16"),
        ("betas: 0.9", r"betas: expected a list"),
        ("betas: [0.9]", r"betas: expected 2 values"),
        ("loggers: [csv, excel]", r"loggers: 'excel' is not one of"),
        ("- lr", r"must hold `name: value` lines"),
        ("lr: [", r"not valid YAML"),
        ("model_args: 3", r"expected `key: value` pairs"),
    ],
)
def test_a_bad_file_is_refused_by_key_and_value(tmp_path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(file, TrainConfig)
    assert "config.yaml" in str(caught.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 2e-4\nmax_steps: null\ndata_dir: ~/x\n")
    config = load_config(tmp_path / "c.yaml", TrainConfig)
    assert config.lr == 2e-4
    assert config.data_dir == Path("~/x").expanduser()


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        recipe("digit")
