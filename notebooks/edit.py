# %% [markdown]
# # Edit a model and see
#
# Attention maps and probes say what is there; only a change says what it does. Here heads and
# subspaces of a trained model are removed while it runs, each beside a random change that is as
# large, and a part of one image is put into another.

# %%
import torch
import unrolled
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from unrolled.figures import ImageGrid, ImageRow, LineChart, Series, heat
from unrolled.instruments import causal, edits

# %% [markdown]
# ## A model to act on
#
# A CRATE for handwritten digits, trained for a few seconds. Everything below takes a timm or
# Hugging Face model as well.

# %%
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
labels = torch.tensor(digits.target)
train, test = train_test_split(
    torch.arange(len(images)), test_size=0.2, stratify=labels, random_state=0
)

model = unrolled.create_model("crate_nano_patch2_8")
epochs, rate = 10, 2e-3
optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, rate, total_steps=epochs * -(-len(train) // 64)
)
for _ in range(epochs):
    for rows in train[torch.randperm(len(train))].split(64):
        loss = cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
model.eval().requires_grad_(False)

shown, answers = images[test], labels[test]


def accuracy():
    return float((model(shown).argmax(1) == answers).float().mean())


before = accuracy()
print(f"{before:.1%} of {len(test)} test images right")

# %% [markdown]
# ## One edit
#
# `edit` writes to the names that `trace` reads, while the block runs. Afterwards the model is as it was.

# %%
with unrolled.edit(model, {"block03/attn/head2": edits.zero}):
    print(f"without head 2 of block 3: {accuracy():.1%}")
with unrolled.edit(model, {"block03/attn": edits.zero}):
    print(f"without all of its attention: {accuracy():.1%}")
with unrolled.edit(model, {"block*/attn": edits.zero}):
    print(f"without any attention: {accuracy():.1%}")
after = accuracy()
print(f"and as it was: {after:.1%}")

# %% [markdown]
# ## Every head, beside a random change of equal size
#
# Removing anything moves the tokens, and a network may mind being pushed at all. So every place is
# changed twice: to zero, and at every token by as much in a random direction. The score is the
# logit of the right answer less that of the best wrong one, which moves before accuracy does.

# %%
score = causal.scores.logit_difference
score_before = score(model(shown), answers)
heads = causal.ablate(model, [(shown, answers)], score, "block*/attn/head*")
heads.panel()


# %%
def beside_random(effects, what):
    places = range(len(effects))
    changed = [each.change for each in effects]
    control = [each.control for each in effects]
    return LineChart(
        title="change of the logit difference",
        x_label=f"{what}, in the order of the model",
        series=[
            Series(label="removed", x=places, y=changed),
            Series(label="random change", x=places, y=control, dashed=True),
        ],
    )


beside_random(heads, "head")

# %%
ranked = sorted(heads, key=lambda each: each.change)
print(f"logit difference unchanged: {heads.score:.2f}")
for each in (*ranked[:3], ranked[-1]):
    print(
        f"{each.name}: {each.change:+.2f} ({each.low:+.2f} to {each.high:+.2f}),",
        f"random {each.control:+.2f}",
    )

# %% [markdown]
# The worst of many heads looks worse than it is, because it was picked. Pick it on one half of the
# images and judge it on the other.

# %%
halves = [
    causal.ablate(model, [(shown[i::2], answers[i::2])], score) for i in (0, 1)
]
picked = min(halves[0], key=lambda each: each.change).name
judged = halves[1][picked]
interval = f"{judged.low:+.2f} to {judged.high:+.2f}"
print(f"{picked}: {halves[0][picked].change:+.2f} where it was picked,")
print(f"{judged.change:+.2f} ({interval}) on the other half,")
print(f"where the random change makes {judged.control:+.2f}")

# %% [markdown]
# ## Subspaces
#
# A head of CRATE owns a subspace U of the tokens, of which it reads nothing else. Project it out of
# what enters the block:
#
# $$
# z \mapsto z - U U^\top z
# $$

# %%
basis = edits.subspace(model, "block03", 2)
with unrolled.edit(model, {"block02": edits.project_out(basis)}):
    by_hand = float((score(model(shown), answers) - score_before).mean())
print(f"dimensions removed: {basis.shape[1]} of {basis.shape[0]}")
print(f"change of the logit difference: {by_hand:+.2f}")

# %% [markdown]
# The sweep does the same for every head, and beside it the random change of equal size.

# %%
spaces = causal.ablate(model, [(shown, answers)], score, "block*/subspace*")
beside_random(spaces, "subspace")

# %%
swept, head = spaces["block03/subspace2"], heads["block03/attn/head2"]
print(
    f"projected out: {swept.change:+.2f} ({swept.low:+.2f} to {swept.high:+.2f})"
)
print(f"random change of equal size: {swept.control:+.2f}")
print(f"removing the head alone: {head.change:+.2f}")

# %% [markdown]
# ## A part of another image
#
# `patch` brings in what another run had in the same place. Class tokens of threes go into eights,
# one layer at a time: where the answer changes hands, the class token has the answer.

# %%
threes, eights = (shown[answers == digit][:24] for digit in (3, 8))
with unrolled.trace(model) as t:
    model(threes)

ImageGrid(
    title="class tokens of the first row go into the second",
    rows=[
        ImageRow(images=[heat(each.numpy()) for each in group[:6, 0]])
        for group in (threes, eights)
    ],
)

# %%
shares = []
for layer in range(6):
    change = edits.at(edits.patch(t), [0])
    with unrolled.edit(model, {f"block{layer:02d}": change}):
        shares.append(float((model(eights).argmax(1) == 3).float().mean()))
LineChart(
    title="eights that are called three",
    x_label="layer after which the class token was exchanged",
    series=[Series(label="patched", x=range(6), y=shares)],
    y_range=(0.0, 1.0),
)

# %% [markdown]
# ## What to conclude
#
# - A head matters where removing it costs more than a random change of equal size, by intervals, on
#   images that did not pick it.
# - Where a patch carries the answer over, the answer is in what was patched.
#
# ## What not to conclude
#
# - That a head does nothing because removing it does nothing: others may step in. Remove several.
# - That a removed head is a model trained without it: zero is a value that the next layer never saw.
#   `edits.mean` and `edits.resample` stay closer to what it knows.
# - That U belongs to its head alone. Projecting it out takes from the tokens what all later layers would
#   read too, so it costs more than removing the head.
#
# More: [all edits and sweeps](../docs/edit.md), [the same on language models](../docs/howto/language.md),
# and [whether CRATE's parts are more local than a ViT's](../docs/studies/crate-causal/README.md).
