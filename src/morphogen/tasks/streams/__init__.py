"""What flows through :mod:`morphogen.tasks.bands`: pixels of windows, noise over an image, blended rows."""
