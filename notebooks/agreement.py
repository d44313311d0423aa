# %% [markdown]
# # Does my model agree with another, and is it chance?
#
# A score of agreement means nothing by itself. This notebook puts three controls beside one:
# shuffled rows, the same networks untrained, and the pixels they all saw.

# %%
from dataclasses import replace

import timm
import torch
import unrolled
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy, interpolate
from unrolled.alignment import mutual_knn
from unrolled.figures import LineChart, Series
from unrolled.instruments import extract, untrained_control

# %% [markdown]
# ## Two models that have little in common
#
# Mine is a timm ViT trained on handwritten digits. The other is the CRATE that ships with the
# package: another architecture, trained on photographs of animals and vehicles. It has never
# seen a digit, and sees these in three channels and at its own size.

# %%
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = train_test_split(
    torch.arange(len(images)), test_size=0.2, stratify=labels, random_state=0
)

mine = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    in_chans=1,
    num_classes=10,
    embed_dim=64,
    depth=4,
    num_heads=4,
)
optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-3, weight_decay=0.05)
for _ in range(12):
    for rows in train[torch.randperm(len(train))].split(64):
        loss = cross_entropy(mine(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

shown, answers = images[test], labels[test]
with torch.no_grad():
    accuracy = float((mine.eval()(shown).argmax(1) == answers).float().mean())
print(f"mine: {accuracy:.0%} of {len(test)} test images right")

other = unrolled.create_model(
    "crate_nano_patch4_32.cifar10", pretrained=True
).eval()
large = interpolate(shown, size=32, mode="bilinear").expand(-1, 3, -1, -1)

# %% [markdown]
# ## Features, and one score
#
# `extract` keeps a vector for each image and layer. Rows are images, in the same order on both
# sides; that is all a comparison needs, so arrays of any origin would do.

# %%
features = {
    "mine": extract(mine, shown),
    "mine, untrained": extract(untrained_control(mine), shown),
    "other": extract(other, large),
    "other, untrained": extract(untrained_control(other), large),
    "pixels": {"pixels": shown.flatten(1)},
}

# %% [markdown]
# Mutual k-nearest-neighbour agreement asks of every image i whether both models have the same
# images beside it:
#
# $$
# m = \frac{1}{n} \sum_i \frac{1}{k} \, \big| N_k^a(i) \cap N_k^b(i) \big|
# $$
#
# `compare` scores all pairs of layers, takes the best, and says what chance would give.

# %%
result = unrolled.compare(features["mine"], features["other"], "mutual_knn", k=10)
panel = result.panel()
replace(panel, title="mutual k-NN", row_label="mine", column_label="other")

# %% [markdown]
# ## Is it chance?
#
# If the models had nothing in common, the rows of one side could be shuffled and nothing would
# change. The null distribution is the best score over all layers after each shuffle, so
# that searching for the best pair is paid for.

# %%
low, high = result.interval
draws, largest = len(result.null_best), float(result.null_best.max())
print(f"score     {result.score:.3f}, at {' and '.join(result.best)}")
print(f"interval  {low:.3f} to {high:.3f} at this many images")
print(f"chance    {result.chance:.3f}, at most {largest:.3f} in {draws} shuffles")
print(f"p         {result.p_value:.3f}, and cannot be less than 1 / {draws + 1}")

# %% [markdown]
# ## Is it training?
#
# It is not chance. But both models look at the same images, and a network of random weights
# hands on much of what is in them. The untrained twins, and the pixels, say how much.

# %%
pairs = {
    "both trained": ("mine", "other"),
    "mine untrained": ("mine, untrained", "other"),
    "other untrained": ("mine", "other, untrained"),
    "both untrained": ("mine, untrained", "other, untrained"),
    "mine and pixels": ("mine", "pixels"),
    "other and pixels": ("other", "pixels"),
}
results = {
    name: unrolled.compare(features[a], features[b], "mutual_knn", k=10)
    for name, (a, b) in pairs.items()
}
for name, each in results.items():
    low, high = each.interval
    chance = f"chance {each.chance:.3f}, p {each.p_value:.3f}"
    print(f"{name:17} {each.score:.3f} ({low:.3f} to {high:.3f}), {chance}")

# %%
half = {
    name: (each.interval[1] - each.interval[0]) / 2
    for name, each in results.items()
}
LineChart(
    title="mutual k-NN, with intervals",
    x_label="k",
    series=[
        Series(label=name, x=[10], y=[each.score], error=[half[name]])
        for name, each in results.items()
    ],
)

# %% [markdown]
# ## Is it more than the classes?
#
# Two models that both tell a 3 from an 8 agree on that alone. Shuffle rows within each class: what
# agreement is left is that of classes, what was lost is agreement about single images.


# %%
def within_classes(seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.arange(len(answers))
    for digit in range(10):
        rows = (answers == digit).nonzero()[:, 0]
        order[rows] = rows[torch.randperm(len(rows), generator=generator)]
    return order


layer_mine, layer_other = result.best
best_mine, best_other = (
    features["mine"][layer_mine],
    features["other"][layer_other],
)
whole = mutual_knn(best_mine, best_other, k=10)
classes = [
    mutual_knn(best_mine, best_other[within_classes(seed)], k=10)
    for seed in range(20)
]
mean = sum(classes) / len(classes)
print(f"as they are              {whole:.3f}")
print(f"shuffled within classes  {mean:.3f}, at most {max(classes):.3f}")
print(f"shuffled over all        {result.chance:.3f}")

# %% [markdown]
# ## Another question, another answer
#
# Metrics ask different things. k says how near a neighbour must be; CKA looks at large distances
# most, and its usual form is above zero by chance. So scores compare only under one metric, at
# one number of images.

# %%
sizes = [2, 5, 10, 20, 40]
curves = {
    name: [
        mutual_knn(features[a][layer_a], features[b][layer_b], k=k) for k in sizes
    ]
    for name, (a, b) in list(pairs.items())[:4]
    for layer_a, layer_b in [results[name].best]
}
chance = [k / (len(test) - 1) for k in sizes]
LineChart(
    title="mutual k-NN by k",
    x_label="k",
    series=[
        *(
            Series(label=name, x=sizes, y=values)
            for name, values in curves.items()
        ),
        Series(label="chance", x=sizes, y=chance, dashed=True),
    ],
)

# %%
others = {}
for metric in ("cka", "unbiased_cka", "procrustes"):
    for name in ("both trained", "both untrained"):
        a, b = pairs[name]
        each = unrolled.compare(
            features[a], features[b], metric, draws=99, resamples=0
        )
        others[metric, name] = each.score
        print(f"{metric:13} {name:15} {each.score:.3f}, chance {each.chance:.3f}")

# %% [markdown]
# Procrustes is a distance, so less is closer: it and CKA find the untrained pair more alike than the
# trained one, where neighbourhoods say the opposite.

# %% [markdown]
# ## What to conclude
#
# - The two models agree more than shuffled rows do: the p-value says that, and only that.
# - How much of it is due to training is the difference from the untrained pairs, with their intervals.
#   Here what mine learned brings the two together; that the other was trained on photographs adds
#   nothing that can be seen.
# - How much is about single images rather than classes is what the shuffle within classes takes away.
#
# ## What not to conclude
#
# - From a small p that models agree well: any two that see the same images reach it.
# - From a score how another study's score compares: it depends on the metric, k and the number of images.
# - That rows may always be shuffled: captions of one photo or frames of one film depend on each
#   other; give `groups=` or `blocks=`.
#
# More: [chance and controls](../docs/ideas/chance.md), [your own features](../docs/start/features.md),
# [fifty models at once](../docs/howto/fifty-models.md), and
# [how often the p-values are wrong](../docs/null_calibration.md).
