# %% [markdown]
# # In-context learning as regression
#
# A model that predicts better the longer its context is must be learning from it. In a world of
# linear dynamics the algorithm can be written down: one layer of linear attention takes one step
# of gradient descent, and one mesa layer solves the least squares. Then a layer is trained from
# scratch, and compared with both.

# %%
import torch
from unrolled.figures import LineChart, Series
from unrolled.layers import LinearSelfAttention, MesaLayer
from unrolled.tasks import LinearDynamics, constructed_tokens, sequence_loss
from unrolled.theory.in_context import (
    gradient_descent_predictions,
    least_squares_predictions,
)

# %% [markdown]
# ## A world that must be learned in context
#
# Every sequence has a rotation W of its own, drawn anew. To predict the next state, find W in
# the states so far:
#
# $$
# s_{t+1} = W s_t + \text{noise}
# $$
#
# $$
# L_t(\Phi) = \frac{1}{2} \sum_{i < t} \| s_{i+1} - \Phi s_i \|^2
# $$

# %%
torch.manual_seed(0)
dim, length = 5, 40
world = LinearDynamics(dim=dim, steps=length)
held_out = world.sample(512, seed=1)
print(
    f"states {list(held_out.inputs.shape)}, rotations {list(held_out.transition.shape)}"
)

# %% [markdown]
# ## Linear attention is a step of gradient descent
#
# Give every token its state and the one before. With the right weights, linear attention adds
# up products of states, and that sum is the gradient of L at zero, applied to the state:
#
# $$
# \hat{s}_{t+1} = \eta \sum_{i < t} s_{i+1} \, (s_i \cdot s_t)
# $$

# %%
tokens = constructed_tokens(held_out.inputs)
step_size = 0.1
constructed = LinearSelfAttention.gradient_descent(
    state_dim=dim, step_size=step_size
)
with torch.no_grad():
    by_layer = constructed(tokens)[..., :dim]
by_theory = gradient_descent_predictions(held_out.inputs, step_size)
one_step_gap = float((by_layer - by_theory).abs().max())
print(f"layer and gradient step differ by at most {one_step_gap:.1e}")

# %% [markdown]
# The step size is the only thing left to choose, and it has a best value.


# %%
def loss_of(predicted):
    return float(sequence_loss(predicted, held_out.targets))


sizes = torch.logspace(-2.5, 0, 21).tolist()
losses = [
    loss_of(gradient_descent_predictions(held_out.inputs, size)) for size in sizes
]
one_step, best = min(zip(losses, sizes, strict=True))
zero = loss_of(0 * held_out.targets)
print(f"loss of predicting zero      {zero:.3f}")
print(f"of the best step, size {best:.3f} {one_step:.3f}")

# %% [markdown]
# ## A mesa layer is least squares
#
# Instead of a step, the layer can solve the problem at every token:
#
# $$
# \hat\Phi_t = \arg\min_\Phi \; L_t(\Phi) + \frac{1}{2 \lambda} \| \Phi \|^2
# $$
#
# $$
# \hat{s}_{t+1} = \hat\Phi_t s_t
# $$
#
# Its queries, keys and values read the same parts of a token as the construction above.

# %%
ridge = 0.01
mesa = MesaLayer(4 * dim, 1, dim_head=dim, ridge=ridge)
with torch.no_grad():
    for name in ("query", "key", "value", "output"):
        getattr(mesa, name).weight.copy_(getattr(constructed, name).weight)
    mesa.value.weight.div_(step_size)  # a step has a size, a solution has none
    solved = mesa(tokens)[..., :dim]
exact = least_squares_predictions(held_out.inputs, ridge)
mesa_gap = float((solved - exact).abs().max())
print(f"layer and ridge regression differ by at most {mesa_gap:.1e}")

# %% [markdown]
# ## What training finds
#
# The same linear layer from random weights, trained to predict the next state. It is told nothing
# of gradients.

# %%
learned = LinearSelfAttention(4 * dim, 1, dim_head=dim, init_std=0.1)
optimizer = torch.optim.Adam(learned.parameters(), lr=5e-3)
steps, curve = 600, []
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for step in range(steps + 1):
    if step % 30 == 0:
        with torch.no_grad():
            curve.append(loss_of(learned(tokens)[..., :dim]))
    batch = world.sample(64, seed=100 + step)
    loss = sequence_loss(
        learned(constructed_tokens(batch.inputs))[..., :dim], batch.targets
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
    optimizer.step()
    schedule.step()

times = range(0, steps + 1, 30)
LineChart(
    title="loss on sequences of new rotations",
    x_label="training step",
    series=[
        Series(label="linear attention, trained", x=times, y=curve),
        Series(
            label="one gradient step",
            x=[0, steps],
            y=[one_step, one_step],
            dashed=True,
        ),
        Series(
            label="predicting zero", x=[0, steps], y=[zero, zero], dashed=True
        ),
    ],
    y_range=(0.0, 1.5 * zero),
)

# %%
print(f"trained layer      {curve[-1]:.3f}")
print(f"best gradient step {one_step:.3f}")
print(f"ratio              {curve[-1] / one_step:.2f}")

# %% [markdown]
# ## Loss by position: the mark of learning in context

# %%
with torch.no_grad():
    predictions = {
        "predicting zero": 0 * held_out.targets,
        "one gradient step": gradient_descent_predictions(held_out.inputs, best),
        "trained layer": learned(tokens)[..., :dim],
        "mesa layer": solved,
    }


def by_position(predicted):
    return (
        0.5 * (predicted - held_out.targets).square().sum(-1).mean(0)
    ).tolist()


positions = {
    name: by_position(predicted) for name, predicted in predictions.items()
}
LineChart(
    title="loss by tokens seen",
    x_label="tokens seen",
    series=[
        Series(
            label=name, x=range(1, length + 1), y=values, dashed="zero" in name
        )
        for name, values in positions.items()
    ],
)

# %% [markdown]
# A step of one size for all lengths is too short early and too long late. Least squares knows
# the rotation once it has seen as many pairs as there are dimensions.

# %%
seen = [1, dim, 2 * dim, length]
for name, values in positions.items():
    print(
        f"{name:18}", " ".join(f"after {t:2}: {values[t - 1]:.4f}" for t in seen)
    )
noise_floor = 0.5 * dim * world.noise**2
print(f"{'the noise alone':18} {noise_floor:.4f}")

# %% [markdown]
# ## Break it: somebody else's context
#
# Keep the last token and take all earlier ones from another sequence. If the layers read W off
# the context, they now read the wrong one.

# %%
swapped = tokens.roll(1, dims=0)
swapped[:, -1] = tokens[:, -1]
misled = {}
for name, layer in {"trained layer": learned, "mesa layer": mesa}.items():
    with torch.no_grad():
        wrong = layer(swapped)[:, -1, :dim]
    misled[name] = float(sequence_loss(wrong, held_out.targets[:, -1]))
    right = positions[name][-1]
    print(f"{name:15} own context {right:.3f}, another's {misled[name]:.3f}")
print(f"predicting zero             {positions['predicting zero'][-1]:.3f}")

# %% [markdown]
# ## What to conclude
#
# - Linear attention can be one step of gradient descent, and a mesa layer is least squares: equalities,
#   which the cells above check.
# - A layer that is trained on such sequences comes to the loss of the best single step, and stays there.
# - Both use the context and nothing else: with another's they are worse than no prediction.
#
# ## What not to conclude
#
# - That equal losses mean equal algorithms. Compare the weights too:
#   [they act alike without being alike](../docs/studies/mesa-interpolation/README.md).
# - That language models do this. Here tokens come with their neighbours bound to them; in a prompt of
#   pairs [that goes wrong](../docs/studies/mesa-few-shot/README.md).
# - That in-context learning follows from falling loss alone: where all sequences share one rotation,
#   [the weights learn it](../docs/studies/mesa-controls/README.md).
#
# More: [the mesa layer](../docs/ideas/mesa.md), [more layers, more steps](../docs/studies/mesa-depth/README.md).
