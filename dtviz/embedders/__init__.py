"""The networks behind `embed`: what each is and needs, and how images go through it."""
