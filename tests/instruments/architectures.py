"""Every architecture that a trace was verified on, with tiny random weights: what is tested of one is tested of all."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

from unrolled.models.encoder import build_language_model
from unrolled.models.sequence_config import language_config

VOCABULARY = 31
_WIDE = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 24}
_TEXT = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PICTURE = {"image_size": 8, "patch_size": 2, "num_channels": 1}
_GROUPED = {"num_key_value_heads": 2}
_SHORT = {"max_position_embeddings": 32}


class Architecture(NamedTuple):
    """How to build one.

    Attributes:
        cls: of transformers, with its configuration; or a name of timm, or of our sequence models.
        settings: of the configuration.
        takes: "ids", "images", "both" (two towers) or "pairs" (encoder and decoder).
        side: of the images.
        parallel: the halves of a block run side by side, so that there is no `half`.
        post: a norm stands between what attention adds and `half`.
    """

    cls: str
    settings: dict[str, Any]
    takes: str = "ids"
    side: int = 8
    parallel: bool = False
    post: bool = False


_GPT2 = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 32, **_TEXT}
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, **_TEXT}
_BART = {
    **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("attention_heads", 4))},
    **{"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, **_TEXT, **_SHORT},
}
_OPT = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "ffn_dim": 24, "word_embed_proj_dim": 16}
_DISTIL = {"dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 24, **_TEXT}
_DINO = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2, "mlp_ratio": 2, **_PICTURE}
_GRANITE = {"residual_multiplier": 0.22, "logits_scaling": 8.0}
_INTERNVL = {**_WIDE, "image_size": [8, 8], "patch_size": [2, 2], "num_channels": 1, "layer_scale_init_value": 0.1}
_SWIN = {
    **{"image_size": 16, "patch_size": 2, "num_channels": 1, "embed_dim": 8},
    **{"depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
}
_TOWERS = {"text_config": {**_WIDE, **_TEXT, **_SHORT}, "vision_config": {**_WIDE, **_PICTURE}}
_TIMM_SWIN = {"img_size": 32, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16}
_TIMM_VIT = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}

HUGGING_FACE = {
    "gpt2": Architecture("GPT2LMHeadModel", _GPT2),
    "llama": Architecture("LlamaForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "mistral": Architecture("MistralForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "qwen2": Architecture("Qwen2ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "qwen3": Architecture("Qwen3ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, "head_dim": 4}),
    "gemma": Architecture("GemmaForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, "head_dim": 4}),
    "gemma2": Architecture("Gemma2ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, "head_dim": 4}),
    "phi3": Architecture("Phi3ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "neox": Architecture("GPTNeoXForCausalLM", {**_WIDE, **_TEXT}, parallel=True),
    "gptj": Architecture("GPTJForCausalLM", {**_GPT2, "rotary_dim": 4}, parallel=True),
    "phi": Architecture("PhiForCausalLM", {**_WIDE, **_TEXT}, parallel=True),
    "cohere": Architecture("CohereForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}, parallel=True),
    "falcon": Architecture("FalconForCausalLM", {**_WIDE, **_TEXT}, parallel=True),
    "falcon-serial": Architecture(
        "FalconForCausalLM", {**_WIDE, **_TEXT, "parallel_attn": False, "multi_query": False}
    ),
    "bloom": Architecture("BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 4, **_TEXT}),
    "opt": Architecture("OPTForCausalLM", {**_OPT, **_TEXT, **_SHORT}),
    "olmo2": Architecture("Olmo2ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "exaone4": Architecture("Exaone4ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED}),
    "glm4": Architecture("Glm4ForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, "head_dim": 4}),
    "granite": Architecture("GraniteForCausalLM", {**_WIDE, **_TEXT, **_GROUPED, **_GRANITE}),
    "mpt": Architecture("MptForCausalLM", {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, **_TEXT}),
    "codegen": Architecture("CodeGenForCausalLM", {**_GPT2, "rotary_dim": 4}, parallel=True),
    "bigcode": Architecture("GPTBigCodeForCausalLM", {**_GPT2, "multi_query": False}),
    "bigcode-shared": Architecture("GPTBigCodeForCausalLM", {**_GPT2, "multi_query": True}),
    "modernbert": Architecture("ModernBertForMaskedLM", {**_WIDE, **_TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "mpnet": Architecture("MPNetForMaskedLM", {**_WIDE, **_TEXT, **_SHORT}, post=True),
    "esm": Architecture("EsmForMaskedLM", {**_WIDE, **_TEXT, **_SHORT, "mask_token_id": 3}),
    "roberta-prenorm": Architecture("RobertaPreLayerNormForMaskedLM", {**_WIDE, **_TEXT, **_SHORT}),
    "bert": Architecture("BertForMaskedLM", {**_WIDE, **_TEXT, **_SHORT}, post=True),
    "roberta": Architecture("RobertaForMaskedLM", {**_WIDE, **_TEXT, "max_position_embeddings": 40}, post=True),
    "distilbert": Architecture("DistilBertForMaskedLM", _DISTIL, post=True),
    "t5-encoder": Architecture("T5EncoderModel", _T5),
    "t5": Architecture("T5ForConditionalGeneration", _T5, takes="pairs"),
    "bart": Architecture("BartForConditionalGeneration", _BART, takes="pairs", post=True),
    "clip": Architecture("CLIPModel", {**_TOWERS, "projection_dim": 8}, takes="both"),
    "clip-text": Architecture("CLIPTextModel", {**_WIDE, **_TEXT, **_SHORT}),
    "clip-vision": Architecture("CLIPVisionModel", {**_WIDE, **_PICTURE}, takes="images"),
    "siglip": Architecture("SiglipModel", _TOWERS, takes="both"),
    "hf-vit": Architecture("ViTForImageClassification", {**_WIDE, **_PICTURE}, takes="images"),
    "hf-dinov2": Architecture("Dinov2Model", _DINO, takes="images"),
    "beit": Architecture("BeitModel", {**_WIDE, **_PICTURE, "layer_scale_init_value": 0.1}, takes="images"),
    "internvl-vision": Architecture("InternVLVisionModel", _INTERNVL, takes="images"),
    "hf-swin": Architecture("SwinModel", _SWIN, takes="images", side=16),
}
TIMM = {
    "vit": Architecture("vit_tiny_patch16_224", _TIMM_VIT, takes="images", side=32),
    "dinov2": Architecture("vit_small_patch14_dinov2", {**_TIMM_VIT, "img_size": 28}, takes="images", side=28),
    "clip-vit": Architecture("vit_base_patch16_clip_224", _TIMM_VIT, takes="images", side=32),
    "eva": Architecture("eva02_tiny_patch14_224", {**_TIMM_VIT, "img_size": 28}, takes="images", side=28),
    "swin": Architecture("swin_tiny_patch4_window7_224", _TIMM_SWIN, takes="images", side=32),
    "crate": Architecture("crate_nano_patch4_32", {"depth": 2}, takes="images", side=32),
}
OURS = {
    name: Architecture(f"{name}_nano", {"depth": 2})
    for name in ("gpt2", "crate_gpt", "crate_bert", "tost_gpt", "mesanet", "bert")
}
ALL = {**HUGGING_FACE, **{f"timm-{k}": v for k, v in TIMM.items()}, **{f"our-{k}": v for k, v in OURS.items()}}


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model in eval mode with random weights, no bias zero, and an input of two samples by argument name."""
    kind, generator = ALL[name], torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    if name.startswith("our-"):
        model: nn.Module = build_language_model(
            language_config(kind.cls, vocab_size=VOCABULARY, max_length=32, **kind.settings)
        )
    elif name.startswith("timm-"):
        model = timm.create_model(kind.cls, **kind.settings)
    else:
        transformers = pytest.importorskip("transformers")
        cls = getattr(transformers, kind.cls)
        model = cls(cls.config_class(**kind.settings))
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    ids = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
    ids[:, -1] = 2  # CLIP looks for the end of the text
    channels = 3 if name.startswith("timm-") else 1
    images = torch.randn(2, channels, kind.side, kind.side, generator=generator)
    if name.startswith("our-"):
        return model.eval(), {"tokens": ids}
    if name.startswith("timm-"):
        return model.eval(), {"x": images}
    given = {
        "ids": {"input_ids": ids},
        "images": {"pixel_values": images},
        "both": {"input_ids": ids, "pixel_values": images},
        "pairs": {"input_ids": ids, "decoder_input_ids": ids.flip(1)},
    }
    return model.eval(), given[kind.takes]
