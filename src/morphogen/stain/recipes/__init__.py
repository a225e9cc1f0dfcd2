"""What a stain model is made of: network, sampling, its folder."""
