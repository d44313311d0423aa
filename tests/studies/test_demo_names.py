"""A typo in the models of the demo is found before anything is started."""

import pytest

from unrolled.studies.demo import DemoConfig


def test_a_typo_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"models: .*patch28.*did you mean crate_nano_patch2_8"):
        DemoConfig(models=("crate_nano_patch28",))


@pytest.mark.parametrize("model", ["crate_nano_patch2_8", "vit_tiny_patch16_224", "timm:whatever", "runs/mine"])
def test_what_may_be_a_model_is_left_to_whom_it_concerns(model: str) -> None:
    assert DemoConfig(models=(model,)).models == (model,)
