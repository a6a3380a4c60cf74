"""Controls of a denoiser: load them, put them on, train them, measure what they do (Control Distillation).

    smile = control.load("smile.safetensors")
    with control.attach(pair, smile, scale=2) as proof: ...

The functions live in modules of their own; this is the name to reach them by.
"""

from ..attach import Proof as Proof
from ..attach import attach as attach
from ..attached import from_adapter as from_adapter
from ..controls import Applied as Applied
from ..controls import Control as Control
from .customise import train_customisation as train_customisation
from .customise import train_dreambooth as train_dreambooth
from .effects import effect as effect
from .effects import outside as outside
from .effects import ratio as ratio
from .effects import sweep as sweep
from .files import load as load
from .files import shipped as shipped
from .sliders import train_slider as train_slider
