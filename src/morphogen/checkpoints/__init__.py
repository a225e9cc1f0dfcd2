"""Reading published checkpoints into our networks, and model folders."""
