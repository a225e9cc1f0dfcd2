"""Pairs of H&E and IHC images or slides: checks, geometry, crops."""
