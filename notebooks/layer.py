# %% [markdown]
# # A layer from its objective
#
# A CRATE layer is two optimisation steps: one compresses the tokens into a few
# subspaces, one makes them sparse. Here both are derived, checked against the layers
# of the package, unrolled, and broken. Nothing is trained; it takes seconds.

# %%
import torch
from unrolled.figures import LineChart, Series
from unrolled.layers import ISTA, MSSA
from unrolled.theory import (
    coding_rate,
    lasso,
    normalize_tokens,
    proximal_step,
    subspace_coding_rate,
    subspace_coding_rate_gradient,
)

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## The objective
#
# Sparse rate reduction asks of tokens Z that they spread out as a whole, lie close to
# the subspaces U of a few heads, and use few coordinates:
#
# $$
# \max_Z \; R(Z) - R^c(Z \mid U) - \lambda \| Z \|_0
# $$
#
# $$
# R^c(Z \mid U) = \sum_k \frac{1}{2} \log\det\big(I + \tfrac{p}{N \epsilon^2} (U_k^\top Z)(U_k^\top Z)^\top\big)
# $$
#
# R^c counts the nats that coding all tokens takes, each head in its own subspace.
# Our tokens are unit vectors. Each lies in a plane within one of the subspaces, with noise
# in all directions.

# %%
width, heads, tokens, eps = 32, 4, 128, 0.5
frame = torch.linalg.qr(torch.randn(width, width))[0]
subspaces = torch.stack(frame.split(width // heads, dim=1))  # [heads, width, p]

home = torch.arange(tokens) % heads
planes = subspaces @ torch.randn(heads, width // heads, 2)
inside = torch.einsum("ndp,np->nd", planes[home], torch.randn(tokens, 2))
start = normalize_tokens(
    normalize_tokens(inside) + 0.1 * torch.randn(tokens, width)
)

print(f"R   = {coding_rate(start, eps):.1f} nats")
print(f"R^c = {subspace_coding_rate(start, subspaces, eps):.1f} nats")

# %% [markdown]
# ## Compress: attention is a gradient step
#
# The gradient has a closed form. To see that it is one, let autograd differentiate the objective.

# %%
z = start.clone().requires_grad_()
(by_autograd,) = torch.autograd.grad(subspace_coding_rate(z, subspaces, eps), z)
gradient = subspace_coding_rate_gradient(start, subspaces, eps)
difference = (gradient - by_autograd).abs().max()
print(f"largest difference: {difference:.1e}")

# %% [markdown]
# Its inverse matrix, expanded to first order and with a softmax for the products of
# tokens, becomes attention in which query, key and value are one projection:
#
# $$
# \mathrm{SSA}_k(Z) = U_k^\top Z \; \mathrm{softmax}\big((U_k^\top Z)^\top (U_k^\top Z) / \sqrt{p}\big)
# $$
#
# `MSSA` is that layer. `compression` says which form of the step it takes: the
# derivation's, the exact gradient, or what the published model adds to its tokens.


# %%
def attention(compression, step=0.3, bases=subspaces):
    options = {"eps": eps} if compression == "exact" else {}
    layer = MSSA(
        width,
        heads,
        compression=compression,
        output="tied",
        scale=step,
        **options,
    )
    with torch.no_grad():
        layer.subspaces.weight.copy_(bases.mT.flatten(0, 1))
    return layer.requires_grad_(False)


cosines = {}
for form in ("exact", "derived", "softmax"):
    update = attention(form)(start[None])[0]
    cosines[form] = float(
        torch.cosine_similarity(update.flatten(), -gradient.flatten(), dim=0)
    )
    print(f"{form:8} cosine with the descent direction: {cosines[form]:+.2f}")

# %% [markdown]
# The derived form points downhill without being the gradient: the price of the softmax. The published
# form points uphill, because it drops the term that shrinks the tokens. Eight layers of each show it.


# %%
def unroll(layer, z, layers=8):
    states = [z]
    for _ in range(layers):
        states.append(states[-1] + layer(states[-1][None])[0])
    return states


def curve(states, label, scaled=False, **style):
    states = [normalize_tokens(z) for z in states] if scaled else states
    rates = [float(subspace_coding_rate(z, subspaces, eps)) for z in states]
    return Series(label=label, x=range(len(rates)), y=rates, **style)


forms = {
    "exact gradient": "exact",
    "MSSA, derived": "derived",
    "MSSA, published": "softmax",
}
runs = {label: unroll(attention(form), start) for label, form in forms.items()}
LineChart(
    title="R^c after so many compression steps (nats)",
    x_label="layer",
    series=[curve(states, label) for label, states in runs.items()],
)

# %% [markdown]
# How much of the fall is mere shrinking? Divide every token by its norm before measuring,
# as `layerwise` does on trained models and as the norm before each layer does for the next.

# %%
LineChart(
    title="R^c of the tokens at norm one (nats)",
    x_label="layer",
    series=[curve(states, label, scaled=True) for label, states in runs.items()],
)

# %% [markdown]
# The exact step compresses: the directions themselves come together. MSSA's derived step is at first
# mostly the shrinking, and the published one does next to nothing to the directions for several layers.

# %% [markdown]
# ## Break it
#
# The same steps in subspaces that are not those of the tokens, and with the sign turned.

# %%
elsewhere = torch.linalg.qr(torch.randn(width, width))[0]
elsewhere = torch.stack(elsewhere.split(width // heads, dim=1))
broken = {
    "as it should be": unroll(attention("exact"), start),
    "random subspaces": unroll(attention("exact", bases=elsewhere), start),
    "sign turned": unroll(lambda z: -attention("exact")(z), start, layers=4),
}
LineChart(
    title="R^c at norm one, and two ways to break it (nats)",
    x_label="layer",
    series=[
        curve(states, label, scaled=True, dashed=label != "as it should be")
        for label, states in broken.items()
    ],
)

# %% [markdown]
# ## Sparsify: ISTA is a proximal step
#
# Where other transformers have an MLP, a white-box layer takes one step on a lasso that
# codes each token x by non-negative entries of a dictionary D:
#
# $$
# Z_{\text{next}} = \mathrm{ReLU}\big(X + \eta D^\top (X - D X) - \eta \lambda\big)
# $$

# %%
ista = ISTA(width, step_size=0.1, sparsity=0.1).requires_grad_(False)
dictionary = ista.dictionary
by_layer = ista(start[None])[0]
by_theory = proximal_step(start, start, dictionary, step_size=0.1, sparsity=0.1)
gap = (by_layer - by_theory).abs().max()
print(f"layer and theory differ by at most {gap:.1e}")

# %% [markdown]
# The layer is the first of many such steps. Going on shows what it descends, and what a
# larger threshold or a step that is too large does.


# %%
def go_on(step_size, sparsity, steps=12):
    codes = [proximal_step(start, start, dictionary, step_size, sparsity)]
    for _ in range(steps - 1):
        codes.append(
            proximal_step(codes[-1], start, dictionary, step_size, sparsity)
        )
    return codes


settings = {
    "lambda 0.1": (0.1, 0.1),
    "lambda 0.4": (0.1, 0.4),
    "lambda 0.1, step too large": (0.4, 0.1),
}
codes = {label: go_on(*setting) for label, setting in settings.items()}
losses = {
    label: [float(lasso(z, start, dictionary, settings[label][1])) for z in steps]
    for label, steps in codes.items()
}
LineChart(
    title="lasso objective after so many ISTA steps",
    x_label="step",
    log_y=True,
    series=[
        Series(label=label, x=range(1, 13), y=values, dashed="large" in label)
        for label, values in losses.items()
    ],
)

# %%
nonzero = {
    label: [float((z > 0).double().mean()) for z in steps]
    for label, steps in codes.items()
}
LineChart(
    title="share of non-zero entries",
    x_label="step",
    series=[
        Series(label=label, x=range(1, 13), y=values)
        for label, values in nonzero.items()
        if "large" not in label
    ],
)

# %%
largest = float(torch.linalg.matrix_norm(dictionary, ord=2))
print(f"a step must stay below 2 / |D|^2 = {2 / largest**2:.2f}")

# %% [markdown]
# ## The layer
#
# One half after the other is the layer. Making tokens sparse moves them out of these subspaces,
# so the next layer comes with its own.

# %%
half = start + attention("exact")(start[None])[0]
after = ista(normalize_tokens(half)[None])[0]
for name, z in {"Z": start, "Z half": half, "Z next": after}.items():
    rate = subspace_coding_rate(normalize_tokens(z), subspaces, eps)
    share = float((z != 0).double().mean())
    print(f"{name:7} R^c {rate:.1f} nats at norm one, {share:.0%} non-zero")

# %% [markdown]
# ## What to conclude
#
# - A gradient step on R^c compresses, and does so in the subspaces where the tokens are. Attention with
#   one projection for query, key and value points the same way, less exactly.
# - ISTA does exactly one step on a lasso, and the step size that is safe follows from the dictionary.
# - Every one of these sentences is a test of the package: a layer is compared with autograd on its objective.
#
# ## What not to conclude
#
# - That a trained CRATE descends R^c in this way: its output map is learned and may turn any sign.
#   Measure it, beside an untrained control: [what a ViT's layers do](vit.py).
# - That a fall of R^c is compression: much of it is tokens getting shorter. Compare the two charts.
# - That a lower R^c means a better network: [here it did not](../docs/studies/crate-ablations/README.md).
#
# More: [objective, layer, test](../docs/ideas/objective.md), the table of forms in
# [`MSSA`](../unrolled/layers/mssa.py), and [a layer of your own](../docs/howto/own-layer.md).
