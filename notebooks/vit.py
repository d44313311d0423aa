# %% [markdown]
# # What a ViT's layers do
#
# Take a timm model, read every layer by name, measure what the layers do to the rates and
# ranks of their tokens, and put the same network untrained beside it: what both do, no
# training taught.

# %%
import timm
import torch
import unrolled
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from unrolled.figures import ImageGrid, ImageRow, heat
from unrolled.instruments import attention_map, trace_report, untrained_control

# %% [markdown]
# ## A model to look at
#
# A ViT for the handwritten digits that come with scikit-learn, trained for a few seconds by a
# plain loop. Nothing here is of this package: put a model of yours in its place.

# %%
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = train_test_split(
    torch.arange(len(images)), test_size=0.2, stratify=labels, random_state=0
)

model = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    in_chans=1,
    num_classes=10,
    embed_dim=64,
    depth=4,
    num_heads=4,
)


def fit(model, epochs, rate):
    steps = epochs * -(-len(train) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps
    )
    for _ in range(epochs):
        for rows in train[torch.randperm(len(train))].split(64):
            loss = cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


fit(model, epochs=16, rate=2e-3)
shown, answers = images[test], labels[test]
with torch.no_grad():
    accuracy = float((model(shown).argmax(1) == answers).float().mean())
print(f"{accuracy:.0%} of {len(test)} test images right")

# %% [markdown]
# ## Every layer by name
#
# `trace` reads what flows through the model while the block runs. The names are the same on
# timm's, Hugging Face's and our models.

# %%
with torch.no_grad(), unrolled.trace(model) as t:
    model(shown)
t

# %% [markdown]
# A block adds two things to its tokens, and the trace has both:
#
# $$
# Z_{\text{half}} = Z + \mathrm{Attention}(Z), \qquad
# Z_{\text{next}} = Z_{\text{half}} + \mathrm{MLP}(Z_{\text{half}})
# $$

# %%
parts = t["block01"] + t["block02/attn"] + t["block02/mlp"]
error = (parts - t["block02"]).abs().max()
print(f"block 2 from its parts: off by at most {error:.1e}")
for part in ("attn", "mlp"):
    sizes = [
        float(t[f"block{n:02d}/{part}"].norm(dim=-1).mean()) for n in range(4)
    ]
    print(
        f"what {part:4} adds, mean norm by layer:",
        " ".join(f"{size:.2f}" for size in sizes),
    )

# %% [markdown]
# ## What the layers do, beside the control
#
# `trace_report` measures every layer, and the same architecture with fresh weights on the
# same images. R is the length of a code of all tokens in nats; R^c codes them head by head, in
# the subspaces that a ViT's value projections span; the effective rank is in how many directions
# tokens vary. Tokens are divided by their norms first. Bars are one standard error over images.

# %%
report = trace_report(model, shown)
layers, control = report["layers"], report["control"]
layers.panel(quantity="subspace_rate", label="trained", control=control)

# %%
layers.panel(quantity="effective_rank", label="trained", control=control)

# %% [markdown]
# The direction of a curve alone says little; the distance from the control says what was learned.

# %%
last, fresh = layers[-1], control[-1]
for quantity in ("rate", "subspace_rate", "effective_rank"):
    apart = last[quantity] - fresh[quantity]
    error = (last[f"{quantity}_se"] ** 2 + fresh[f"{quantity}_se"] ** 2) ** 0.5
    values = f"trained {last[quantity]:.1f}, untrained {fresh[quantity]:.1f}"
    print(f"{quantity:15} {values}, apart by {apart:+.1f} (error {error:.1f})")

# %% [markdown]
# One fresh network is one draw. How far do others lie from it?

# %%
others = [
    trace_report(model, shown, seed=seed)["control"][-1]["subspace_rate"]
    for seed in (1, 2, 3)
]
fresh = [control[-1]["subspace_rate"], *others]
print(
    "R^c at the last layer, untrained, four draws:",
    " ".join(f"{value:.1f}" for value in fresh),
)
print(f"trained: {layers[-1]['subspace_rate']:.1f}")

# %% [markdown]
# ## Where the class token looks
#
# `attention_map` multiplies the attention of all layers. Both rows have one scale, from none to
# four times an even share, so that a flat map looks flat.

# %%
first = [int((answers == digit).nonzero()[0, 0]) for digit in (0, 1, 4, 7)]
few = shown[first]
even = 1 / 16


def maps(network):
    attention = attention_map(network, few)
    return [heat(each.numpy(), 0, 4 * even) for each in attention]


ImageGrid(
    title="attention rollout from the class token",
    rows=[
        ImageRow(
            label="image", images=[heat(each.numpy()) for each in few[:, 0]]
        ),
        ImageRow(label="trained", images=maps(model)),
        ImageRow(label="untrained", images=maps(untrained_control(model))),
    ],
)

# %% [markdown]
# ## A white-box model, by the same lines
#
# The CRATE that ships was trained on CIFAR-10. Its second half, ISTA, ends in a ReLU, so the share
# of non-zero entries has a meaning here; in a ViT it is always one. The images are tiles of the two
# photographs that come with scikit-learn.

# %%
crate = unrolled.create_model(
    "crate_nano_patch4_32.cifar10", pretrained=True
).eval()
photos = torch.stack(
    [torch.tensor(photo) for photo in load_sample_images().images]
)
tiles = photos.permute(0, 3, 1, 2).unfold(2, 32, 32).unfold(3, 32, 32)
tiles = tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)[::4] / 255
mean, std = (
    torch.tensor(crate.pretrained_cfg[key])[:, None, None]
    for key in ("mean", "std")
)

white_box = trace_report(crate, (tiles - mean) / std)
white_box["layers"].panel(
    quantity="subspace_rate", label="trained", control=white_box["control"]
)

# %%
white_box["layers"].panel(
    quantity="nonzero", label="trained", control=white_box["control"]
)

# %% [markdown]
# ## What to conclude
#
# - Any block's halves can be read by name, and they add up.
# - What training did to the layers is the distance between the two curves, and the draws of the
#   control say how large a distance is nothing.
# - Training raised R^c in this ViT and lowered it in this CRATE: what it does to R^c is no property of all
#   transformers, nor of all CRATEs (in `crate_nano_patch4_32.cifar10_hour` it raised it).
# - Sparsity of CRATE's tokens is there before any training: ISTA brings it.
#
# ## What not to conclude
#
# - From R^c of two models which compresses more: each has subspaces of its own.
# - From attention that a patch matters: attended is not used. [Edit the model](edit.py) and see.
# - From one trained network that all do this: it is one seed, of small images.
#
# More: [the numbers](../docs/ideas/numbers.md), [names of a trace](../docs/ideas/names.md), and the
# same from the command line, `unrolled trace timm:NAME --data folder --data-dir PHOTOS`.
