"""A whole diffusion model with known truth: the denoiser is the exact posterior of a Gaussian mixture.

For x_t = a x0 + b n and x0 from sum_k w_k N(mu_k, s²), the posterior mean E[x0 | x_t] is a softmax over the components of
N(x_t; a mu_k, a² s² + b²) times mu_k + a s² / (a² s² + b²) (x_t - a mu_k). Capture must see it, and sampling must give w.
"""

import diffusers
import pytest
import torch

import dtviz

WEIGHTS = torch.tensor([0.5, 0.3, 0.2])
SPREAD = 0.4
LINEAR = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}  # sigma 157 at the end
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


class Posterior(torch.nn.Module):
    """An exact denoiser on 2-channel 1x1 latents, told the noise level by the timestep alone, as a real one."""

    def __init__(self, scheduler) -> None:
        super().__init__()
        self.means = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
        self.scheduler, self.seen = scheduler, []

    def level(self, t: torch.Tensor) -> tuple[float, float]:
        name = type(self.scheduler).__name__
        if name in FLOW:
            return 1 - float(t) / 1000, float(t) / 1000
        if name.startswith("EDM"):  # c_noise = log(sigma) / 4
            sigma = float((4 * t).exp())
            return 1.0, sigma
        log_sigma = ((1 - self.alphas) / self.alphas).sqrt().log()
        low, share = int(t), float(t) - int(t)
        sigma = float((log_sigma[low] * (1 - share) + log_sigma[min(low + 1, 999)] * share).exp())
        return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5

    @property
    def alphas(self) -> torch.Tensor:
        return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, b = self.level(t)
        x = x.double()
        if type(self.scheduler).__name__.startswith("EDM"):  # its input comes scaled by c_in
            x = x * (b**2 + 0.25) ** 0.5
        centres = a * self.means.double()[:, None, :, None, None]  # (component, 1, channel, 1, 1)
        variance = a**2 * SPREAD**2 + b**2
        distances = ((x - centres) ** 2).sum(dim=(2, 3, 4))  # (component, sample)
        posterior = (WEIGHTS.double().log()[:, None] - distances / (2 * variance)).softmax(dim=0)
        shrunk = self.means.double()[:, None, :, None, None] + a * SPREAD**2 / variance * (x - centres)
        mean = (posterior[:, :, None, None, None] * shrunk).sum(dim=0)
        self.seen.append(mean.float())
        noise = (x - a * mean) / b
        if type(self.scheduler).__name__ in FLOW:
            return (noise - mean).float()
        if type(self.scheduler).__name__.startswith("EDM"):
            skip, out = 0.25 / (b**2 + 0.25), b * 0.5 / (b**2 + 0.25) ** 0.5
            return ((mean - skip * x) / out).float()
        return noise.float()


class MixturePipeline(diffusers.DiffusionPipeline):
    """A pipeline of one's own: no text, no VAE, any scheduler."""

    def __init__(self, unet, scheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, samples: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.randn(samples, 2, 1, 1, generator=generator) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.scheduler.timesteps:
            model_input = self.scheduler.scale_model_input(x, t) if hasattr(self.scheduler, "scale_model_input") else x
            x = self.scheduler.step(self.unet(model_input, t), t, x, return_dict=False)[0]
        return x


SAMPLERS = {
    "DDIMScheduler": {"clip_sample": False, "timestep_spacing": "trailing"},
    "DDPMScheduler": {"clip_sample": False, "timestep_spacing": "trailing"},
    "PNDMScheduler": {"timestep_spacing": "trailing", "skip_prk_steps": True},
    "EulerDiscreteScheduler": {"timestep_spacing": "trailing"},
    "EulerAncestralDiscreteScheduler": {"timestep_spacing": "trailing"},
    "LMSDiscreteScheduler": {"timestep_spacing": "trailing"},
    "HeunDiscreteScheduler": {"timestep_spacing": "trailing"},
    "KDPM2DiscreteScheduler": {"timestep_spacing": "trailing"},
    "KDPM2AncestralDiscreteScheduler": {"timestep_spacing": "trailing"},
    "DPMSolverSDEScheduler": {"timestep_spacing": "trailing"},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "trailing"},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {"timestep_spacing": "trailing"},
    "DEISMultistepScheduler": {"timestep_spacing": "trailing"},
    "EDMEulerScheduler": {"sigma_max": 80.0},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on rounded noise levels
@pytest.mark.parametrize("name", SAMPLERS)
def test_capture_sees_the_posterior_mean_and_sampling_gives_the_weights(name):
    kind = getattr(diffusers, name)
    betas = LINEAR if "beta_schedule" in kind.__init__.__wrapped__.__code__.co_varnames else {}
    scheduler = kind(**betas, **SAMPLERS[name])
    torch.manual_seed(0)
    pipe = MixturePipeline(Posterior(scheduler), scheduler)
    with dtviz.capture(pipe) as trace:
        final = pipe(20_000, 60, torch.Generator().manual_seed(0))

    assert torch.equal(trace.final, final)
    assert len(trace.calls) == len(pipe.unet.seen)
    size = float(pipe.unet.means.abs().max())
    for call, seen in zip(trace.calls, pipe.unet.seen, strict=True):
        # float32 noise of a sample at sigma is worth 6e-8 sigma of x0, some bits of it several times over
        assert float((call.x0 - seen).abs().max()) < max(1e-3, 2e-6 * min(call.sigma, 1e3)) * size

    nearest = torch.cdist(final.flatten(1), pipe.unet.means).argmin(dim=1)
    shares = torch.bincount(nearest, minlength=3) / len(final)
    # four standard errors of 2,000 draws, .045 at most, and as much again as 60 steps leave of the integration error
    print(name, (shares - WEIGHTS).abs().max())
    assert float((shares - WEIGHTS).abs().max()) < 0.05, shares


class SteppingTwice(MixturePipeline):
    """Guides x̂0, as Cosmos: steps once to get it, takes the step back, and steps with it."""

    @torch.no_grad()
    def __call__(self, samples: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.randn(samples, 2, 1, 1, generator=generator) * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(x, t), t)
            planned = self.scheduler.step(output.repeat(2, 1, 1, 1), t, x.repeat(2, 1, 1, 1), return_dict=False)[1][
                : len(x)
            ]
            self.scheduler._step_index -= 1
            x = self.scheduler.step(output, t, x, return_dict=False, pred_original_sample=planned * 0.5)[0]
        return x


def test_a_step_that_is_taken_back_is_one_step():
    scheduler = diffusers.EDMEulerScheduler(sigma_max=80.0)
    pipe = SteppingTwice(Posterior(scheduler), scheduler)
    with dtviz.capture(pipe, x_t=True) as trace:
        pipe(50, 6, torch.Generator().manual_seed(0))
    assert len(trace.x0) == len(trace.x_t) == len(pipe.unet.seen) == 6
    torch.testing.assert_close(trace.x0, torch.stack(pipe.unet.seen) * 0.5, atol=1e-3, rtol=1e-3)
