"""Small things every room uses: errors, configuration, atomic files, seeds, progress, devices, provenance."""
