"""JAX with flax's nnx: ALTO, and E in front of optax's Muon, on scikit-learn's digits."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from thalweg.jax import alto, scale_by_exploration

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images, jnp.float32) / 16, jnp.asarray(labels)
STEPS, BATCH = 40, 512


def matrices(params):
    """Which parameters are decayed and adapted: biases are neither."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@nnx.jit
def train_step(model, optimizer, batch):
    """Update the model in place; the loss before."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images[batch]), labels[batch]).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


schedule = optax.cosine_decay_schedule(0.05, STEPS)
accuracies = {}
for name, transformation in {
    "ALTO": alto(schedule, mask=matrices, trust_mask=matrices),
    "E of Muon": optax.chain(scale_by_exploration(alpha=0.5, beta=0.01), optax.contrib.muon(schedule)),
}.items():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    for k in range(STEPS):
        train_step(model, optimizer, jax.random.permutation(jax.random.key(k), len(images))[:BATCH])
    accuracies[name] = float((model(images).argmax(1) == labels).mean())

print("flax nnx: accuracy", ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in accuracies.items()))
