"""What the recipes are made of: gene diffusion, the spatial read-out and its residual."""
