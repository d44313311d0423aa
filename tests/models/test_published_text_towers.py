"""Synthetic trees in the published layouts of ToST for text and CLIPA, against plain forms of the published models."""

import pytest
import torch
from torch.nn import functional as F

from unrolled.models.published import load_published

D, HEADS, DEPTH = 8, 2, 2


def tost_tree(length: int = 6, words: int = 11) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * 0.4

    tree = {"wte.weight": draw(words, D), "wpe.weight": draw(length, D), "ln_f.weight": 1 + draw(D)}
    for i in range(DEPTH):
        tree |= {f"h.{i}.ln_{k}.weight": 1 + draw(D) for k in (1, 2)}
        tree |= {f"h.{i}.attn.c_attn.weight": draw(D, D), f"h.{i}.attn.c_proj.weight": draw(D, D)}
        tree |= {f"h.{i}.attn.temp": 1 + draw(HEADS, 1), f"h.{i}.attn.denom_bias": draw(HEADS, length, 1)}
        tree |= {f"h.{i}.mlp.c_fc.weight": draw(4 * D, D), f"h.{i}.mlp.c_proj.weight": draw(D, 4 * D)}
    tree = {f"transformer.{key}": value for key, value in tree.items()}
    return tree | {"lm_head.weight": tree["transformer.wte.weight"]}


def tost_logits(tree: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The published model, token by token: statistics are sums over the tokens so far."""
    t = {key.removeprefix("transformer."): value for key, value in tree.items()}
    z = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for i in range(DEPTH):
        w = F.layer_norm(z, (D,), t[f"h.{i}.ln_1.weight"]) @ t[f"h.{i}.attn.c_attn.weight"].T
        w = w.unflatten(-1, (HEADS, -1))
        rows, pis = [], []
        for j in range(len(ids)):
            share = w[j] ** 2 / (w[: j + 1] ** 2).sum(0) + t[f"h.{i}.attn.denom_bias"][:, j]
            pis.append((t[f"h.{i}.attn.temp"][:, 0] * share.sum(-1)).softmax(0))
            pi = torch.stack(pis)
            moments = (w[: j + 1] ** 2 * pi[..., None]).sum(0) / pi.sum(0)[:, None]
            rows.append(-(w[j] * pis[-1][:, None] / (1 + moments)).flatten())
        z = z + torch.stack(rows) @ t[f"h.{i}.attn.c_proj.weight"].T
        hidden = F.gelu(F.layer_norm(z, (D,), t[f"h.{i}.ln_2.weight"]) @ t[f"h.{i}.mlp.c_fc.weight"].T)
        z = z + hidden @ t[f"h.{i}.mlp.c_proj.weight"].T
    return F.layer_norm(z, (D,), t["ln_f.weight"]) @ t["lm_head.weight"].T


def test_tost_for_text_is_read_and_computes_what_was_published(tmp_path):
    tree = tost_tree()
    file = tmp_path / "ckpt.pt"
    torch.save({"model": {f"_orig_mod.{key}": value for key, value in tree.items()}, "iter_num": 3}, file)
    model = load_published(file)
    assert model.load_report.layout == "ToST (language)"
    assert not model.load_report.ignored
    ids = torch.tensor([3, 1, 4, 1, 5, 9])
    out = model(ids[None])
    torch.testing.assert_close(out[0], tost_logits(tree, ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="heads"):
        load_published(file, heads=4)
    torch.save(tree | {"transformer.h.0.attn.c_attn.bias": torch.zeros(D)}, file)
    with pytest.raises(ValueError, match="bias"):
        load_published(file)


def clipa_tree(patch: int = 4, grid: int = 2, out: int = 5) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g) * 0.4

    tree = {"conv1.weight": draw(D, 3, patch, patch), "class_embedding": draw(D), "proj": draw(D, out)}
    tree |= {"positional_embedding": draw(grid**2 + 1, D), "ln_post.weight": 1 + draw(D), "ln_post.bias": draw(D)}
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}"
        for norm in ("ln_1", "ln_2"):
            tree |= {f"{block}.{norm}.weight": 1 + draw(D), f"{block}.{norm}.bias": draw(D)}
        tree |= {f"{block}.attn.in_proj_weight": draw(D, D).repeat(3, 1), f"{block}.attn.out_proj.weight": draw(D, D)}
        tree |= {f"{block}.mlp.c_fc": draw(D, 4 * D), f"{block}.mlp.c_proj": draw(D, 4 * D)}
    tree = {f"visual.{key}": value for key, value in tree.items()}
    return tree | {"token_embedding.weight": draw(7, D), "logit_scale": torch.tensor(2.0)}


def clipa_embedding(tree: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The published tower on PyTorch's own attention, with the two ISTA steps written out."""
    t = {key.removeprefix("visual."): value for key, value in tree.items()}

    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(z, (D,), t[f"{name}.weight"], t[f"{name}.bias"], 1e-6)

    z = F.conv2d(images, t["conv1.weight"], stride=4).flatten(2).mT
    z = torch.cat([t["class_embedding"].expand(len(z), 1, D), z], 1) + t["positional_embedding"]
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}"
        attention = torch.nn.MultiheadAttention(D, HEADS, bias=False, batch_first=True)
        attention.load_state_dict(
            {key: t[f"{block}.attn.{key}"] for key in ("in_proj_weight", "out_proj.weight")}, strict=True
        )
        x = norm(z, f"{block}.ln_1")
        z = z + attention(x, x, x, need_weights=False)[0]
        x, atoms = norm(z, f"{block}.ln_2"), t[f"{block}.mlp.c_fc"]
        first = F.relu(0.1 * x @ atoms - 0.01)
        second = F.relu(first - 0.1 * (first @ atoms.T - x) @ atoms - 0.01)
        z = z + second @ t[f"{block}.mlp.c_proj"].T
    return norm(z[:, 0], "ln_post") @ t["proj"]


def test_the_clipa_image_tower_is_read_and_computes_what_was_published(tmp_path):
    tree, file = clipa_tree(), tmp_path / "clipa.pt"
    torch.save(tree, file)
    model = load_published(file, heads=HEADS)
    assert model.load_report.layout == "CRATE-alpha (CLIPA)"
    assert set(model.load_report.ignored) == {"logit_scale", "token_embedding.weight"}
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(images), clipa_embedding(tree, images), rtol=1e-4, atol=1e-5)
    assert load_published(file, heads=HEADS, image_size=(16, 8))(torch.randn(1, 3, 16, 8)).shape == (1, 5)
    tree["visual.transformer.resblocks.1.attn.in_proj_weight"][D] += 1
    torch.save(tree, file)
    with pytest.raises(ValueError, match="differ"):
        load_published(file, heads=HEADS)
