"""Controls of a denoiser: load them, attach them, train them, and measure their effect (Control Distillation)."""

from .attach import attach as attach
from .control import Control as Control
from .control import load as load
from .control import shipped as shipped
from .effects import effect as effect
from .effects import outside as outside
from .effects import sweep as sweep
from .train import ATTENTION as ATTENTION
from .train import train_customisation as train_customisation
from .train import train_slider as train_slider
