"""Exploring by hand: `explore`, its widgets, and what they show without any widget."""

from .widgets import Explorer as Explorer
from .widgets import explore as explore
