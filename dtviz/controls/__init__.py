"""Controls of a denoiser: load them, attach them, train them, and measure their effect (Control Distillation)."""

from .attach import attach
from .control import Control, load, shipped
from .effects import effect, outside, sweep
from .train import ATTENTION, train_customisation, train_slider
