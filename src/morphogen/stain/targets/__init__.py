"""What a stain model makes: pictures in colour, or named channels of measured intensity."""
