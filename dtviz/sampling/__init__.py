"""The parts of `generate`: its arguments, a plan of who denoises each call, and the relay that carries it out."""
