"""A user's script, for `mypy --strict` and pyright: neither may find anything in it. It runs, too."""

import tempfile

import torch
from torch import Tensor, nn

import lae_fast


def potential(phi: Tensor) -> Tensor:
    return phi.square().sum()


state = lae_fast.ald_init(potential, torch.zeros(2, 3), 1e-3)
state, info = lae_fast.ald_step(potential, state)
state = lae_fast.adapt_step_size(state, info)
accepted: Tensor = info.is_accepted
samples = lae_fast.langevin_sample(
    lambda z: z.square().sum(-1), torch.zeros(2, 3, 4), n_draws=10, step_size=0.1
)
z: Tensor = samples.z
encoder, decoder = nn.Sequential(nn.Linear(9, 8), nn.ReLU()), nn.Linear(2, 9)
model = lae_fast.LAE(encoder, decoder, lae_fast.Bernoulli(), nx=9, nz=2, d=8, decisions="joint", n_steps=2)
loss: Tensor = model.loss(torch.rand(4, 9))
step = lae_fast.TrainingStep(model, torch.optim.Adam(model.parameters()))
value: float = step(torch.rand(4, 9)).item()
result = lae_fast.evaluate(model, torch.rand(4, 9))
print(result.negative_elbo, model.sample(3), model.reconstruct(torch.rand(2, 9)))
phi: Tensor = model.phi
rate: float = model.acceptance_rate.item()
for images in (torch.rand(2, 9), torch.rand(3, 9)):
    q_mean, q_std = model.posterior(images)
schedule = lae_fast.fit_schedule(model, torch.rand(2, 9), n_temperatures=3, n_chains=2, n_pilot=2)
ais = lae_fast.annealed_log_likelihood(model, torch.rand(2, 9), schedule, n_chains=2)
images, labels = lae_fast.augment(model, torch.rand(2, 9), torch.tensor([0, 1]), 3)
both: tuple[Tensor, Tensor] = images, labels
worst = lae_fast.attacks.pgd(nn.Linear(9, 3), torch.rand(2, 9), torch.tensor([0, 1]), eps=0.1, step_size=0.01)
log_step_size: Tensor = model.log_step_size
scale: Tensor = model.posterior_scale
losses: list[float] = lae_fast.fit(model, torch.rand(8, 9), epochs=1, batch_size=4, progress=False)
with tempfile.TemporaryDirectory() as folder:
    model.save(folder)
    loaded = lae_fast.load(folder, encoder=encoder, decoder=decoder)
decoded: Tensor = loaded.decode(loaded.encode(torch.rand(2, 9)))
