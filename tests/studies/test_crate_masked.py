"""Layers of masked autoencoders: what is measured is what the blocks compute."""

from __future__ import annotations

import pytest
import torch

from unrolled.models import create_model
from unrolled.studies.crate.masked import fixed_noise, measure, measure_layer, mirrored, tokens

SMALL = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "num_heads": 2, "depth": 2, "in_chans": 1}


@pytest.mark.parametrize("name", ["crate_mae_nano_patch4_32", "vit_mae_nano_patch4_32"])
@pytest.mark.parametrize("encoder", ["full", "visible"])
def test_states_are_those_of_the_model_and_chunks_do_not_matter(name: str, encoder: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, **SMALL, encoder=encoder).eval()
    images = torch.randint(0, 256, (70, 1, 8, 8), dtype=torch.uint8)
    pixels = images.float().sub(127.5).div(64)
    with torch.no_grad():
        states = tokens(model, pixels, fixed_noise(70, 16))
        again = model.decoder_pred(model.decoder_norm(states["decoder"][-1]))[:, 1:]
        expected = model(pixels, 0.75, fixed_noise(70, 16)).prediction
        torch.testing.assert_close(again, expected)
        for stack, blocks in (("encoder", model.blocks), ("decoder", model.decoder_blocks)):
            for block, z, after in zip(blocks, states[stack], states[stack][1:], strict=False):
                torch.testing.assert_close(block(z), after)
        found = measure(model, images)
        whole = measure_layer(model.decoder_blocks[1], states["decoder"][1], states["decoder"][2])
    assert found["decoder"][1] == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert (found["mirror"] is None) == (encoder == "visible")
    assert len(found["encoder"]) == len(found["decoder"]) == 2


def test_the_decoder_reverses_what_the_encoder_adds() -> None:
    """With the encoder's attention in it and an identity for a map, a decoder layer subtracts the same step."""
    torch.manual_seed(0)
    model = create_model("crate_mae_nano_patch4_32", **SMALL).eval()
    encoder, decoder = model.blocks[0], model.decoder_blocks[0]
    z = torch.randn(3, 17, 16)
    with torch.no_grad():
        decoder.attn.load_state_dict(encoder.attn.state_dict())
        decoder.linear.weight.copy_(torch.eye(16))
        decoder.norm1 = torch.nn.Identity()
        one, other = measure_layer(encoder, z, encoder(z)), measure_layer(decoder, z, decoder(z))
    assert one["rate_before"] == pytest.approx(other["rate_before"])
    assert one["cosine"] == pytest.approx(-other["cosine"], abs=1e-5)
    assert other["rate_after"] == pytest.approx(other["rate_next"], rel=1e-5)


def test_a_mirror_is_recognised_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(40, 11, 5, generator=generator) for _ in range(4)]
    other = [torch.randn(40, 11, 5, generator=generator) for _ in range(4)]
    visible = torch.rand(40, 10, generator=generator) < 0.5
    found = mirrored(states, states[::-1], visible)
    assert found["all"] > 0.6
    assert found["visible"] > 0.6
    assert abs(mirrored(states, other, visible)["all"]) < 0.02
    assert found["cka_all"][1][2] == pytest.approx(1)
    places = torch.randn(1, 11, 5, generator=generator)  # shared by all images: no resemblance
    shifted = mirrored([z + 9 * places for z in states], [z + 9 * places for z in other], visible)
    assert max(max(row) for row in shifted["cka_all"]) < 0.1


def test_every_position_counts_when_not_every_token_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 x 16 tokens 40 are compared; every sixteenth would be one patch alone, here one that says nothing."""
    monkeypatch.setattr("unrolled.studies.crate.masked._PAIRED", 40)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(40, 17, 5, generator=generator) for _ in range(3)]
    other = [torch.randn(40, 17, 5, generator=generator) for _ in range(3)]
    for mine, theirs in zip(states, other, strict=True):
        theirs[:, 2:] = mine[:, 2:]  # equal but for the first patch
    grid = mirrored(states, other, torch.ones(40, 16, dtype=torch.bool))["cka_all"]
    assert all(grid[i][i] > 0.5 for i in range(3))
