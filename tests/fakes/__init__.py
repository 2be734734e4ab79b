"""In place of the outside world: same promises, no machine."""
