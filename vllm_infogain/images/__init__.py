"""Pictures as codes: pure functions and modules of torch. Any room may import it; it imports none."""
